"""What a finished run tells: metrics.json, the lines of predictions.jsonl, the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sft_hf.data.columns import column_values, texts_or_paths
from sft_hf.data.examples import Examples
from sft_hf.data.loading.roles import Splits
from sft_hf.engine import process
from sft_hf.engine.epochs import WholeSet
from sft_hf.publishing.card.adapter import adapter_card
from sft_hf.publishing.card.model_card import build_card
from sft_hf.tasks.base import Task

if TYPE_CHECKING:
    from sft_hf.core.run.record import RunRecord
    from sft_hf.core.sources.sources import Source
    from sft_hf.engine.state import Training, TrainState
    from sft_hf.models.adapters.files import Adapter


def prediction_rows(
    task: Task[Any], outputs: dict[str, Tensor], examples: Examples, split: Any
) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl: row id, path or text, reference (if there are labels), prediction, ...

    `split`: the data set that `examples` were made of, or more rows of it.
    """
    inputs = _inputs(task, examples, split)
    rows = zip(examples.row_ids, inputs, examples.references, task.decode(outputs), strict=True)
    return [
        {"id": int(row_id), **given} | ({"reference": task.reference(reference)} if examples.labelled else {}) | decoded
        for row_id, given, reference, decoded in rows
    ]


_INPUT_NAMES = {
    "data.text_column": "text",
    "data.text_pair_column": "text_pair",
    "data.image_column": "path",
    "data.audio_column": "path",
}
"""Keys of a recipe that name a column of input, and what it is called in predictions.jsonl."""


def _inputs(task: Task[Any], examples: Examples, split: Any) -> list[dict[str, Any]]:
    """Return {"text": ...} or {"path": ...} of every example; {} of a picture or recording without a path."""
    columns = {_INPUT_NAMES[key]: column for key, column in task.columns().items() if key in _INPUT_NAMES}
    cells = zip(*(texts_or_paths(split, column) for column in columns.values()), strict=True)
    given = [{name: cell for name, cell in zip(columns, row, strict=True) if cell is not None} for row in cells]
    of_row = dict(zip(column_values(split, "row_id"), given, strict=True))
    return [of_row[row_id] for row_id in examples.row_ids.tolist()]


def run_metrics(
    training: Training,
    state: TrainState,
    model: Any,
    scores: dict[str, Any],
    *,
    baselines: list[dict[str, Any]],
    overview: dict[str, Any],
    splits: Splits,
    source: Source,
    total_seconds: float,
) -> dict[str, Any]:
    """Return what metrics.json holds.

    Args:
        training, state, model: the run at its end, and the weights that were chosen.
        scores: metrics by role.
        baselines: see `sft_hf.jobs.baselines.compare`.
        overview: see `sft_hf.jobs.overview`.
        splits, source: where data and checkpoint came from.
        total_seconds: from the start of the command, or of its resumption.
    """
    recipe, accelerator = training.recipe, training.accelerator
    parameters = list(model.parameters())
    trained = [p for group in training.optimizer.param_groups for p in group["params"]]  # adapters are merged by now
    rows = len(training.data.examples) if isinstance(training.data, WholeSet) else None
    return {
        "task": recipe.task.name,
        "primary_metric": training.task.primary_metric,
        **{role: scores[role] for role in ("test", "validation") if role in scores},
        **({"baseline": baselines[0], "baselines": baselines} if baselines else {}),
        "train": {
            "runtime_seconds": round(state.seconds, 3),
            "total_seconds": round(total_seconds, 3),
            "examples_per_second": round(state.examples_seen / max(state.seconds, 1e-9), 3),
            "num_steps": state.step,
            "num_epochs": None if rows is None else round(state.examples_seen / rows, 4),
            "num_examples": rows,
            "final_loss": state.loss,
            "best_step": state.best_step,
            "rows_per_forward_pass": -(-recipe.train.per_device_train_batch_size // 2**state.halvings),
            "peak_memory_bytes": process.peak_memory_bytes(accelerator.device),
        },
        "model": {
            "name": recipe.model.name,
            "type": getattr(model.config, "model_type", None),
            "revision": source.revision,
            "served_by": source.served_by,
            "num_parameters": sum(parameter.numel() for parameter in parameters),
            "num_trainable_parameters": sum(p.numel() for p in trained),
        },
        "data": {"name": recipe.data.name, "revision": splits.revision, **overview},
        "environment": process.environment(accelerator),
        "seed": recipe.seed,
    }


def write_card(record: RunRecord, folder: Path) -> None:
    """Write the model's README.md."""
    (folder / "README.md").write_text(
        build_card(record, pipeline_tag=record.recipe.task.pipeline_tag), encoding="utf-8"
    )


def write_adapter(record: RunRecord, adapter: Adapter, folder: Path) -> None:
    """Write the adapter alone, as plain PEFT opens it, and its README.md."""
    adapter.save(folder)
    (folder / "README.md").write_text(adapter_card(record), encoding="utf-8")
