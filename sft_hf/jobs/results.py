"""Outputs of a finished run: metrics.json, predictions.jsonl, model card, report.html."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sft_hf.core.errors import SftError, UserError
from sft_hf.core.filesystem import committed_folder, write_text
from sft_hf.core.run.folder import RunFolder
from sft_hf.core.run.record import RunRecord, read_record, with_outputs
from sft_hf.data.columns import column_values, texts_or_paths
from sft_hf.data.examples import Examples
from sft_hf.data.loading.roles import ROW_ID, Splits
from sft_hf.engine import process
from sft_hf.engine.epochs import InMemoryEpochs
from sft_hf.jobs.inputs import load_data
from sft_hf.models.adapters.files import Adapter, savable
from sft_hf.publishing.card.adapter import adapter_card
from sft_hf.publishing.card.model_card import build_card
from sft_hf.publishing.hub.push import push
from sft_hf.publishing.report.run_report import build_report, rows_to_show
from sft_hf.tasks.base import Preview, Task, task_class

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.sources.sources import Source
    from sft_hf.engine.state import Training, TrainState

log = logging.getLogger("sft_hf")


OUTPUTS = {
    "model": "model/, and adapter/ for a parameter-efficient run",
    "card": "README.md in model/ and adapter/; only written together with the model",
    "predictions": "predictions.jsonl of test, or of validation if there is no test split",
    "outputs": "outputs/: the model's outputs for every row of validation and test, see `sft_hf.core.run.outputs`",
    "report": "report.html",
    "baselines": "baselines, which take up to a tenth of the run's time, in metrics.json, card and report",
    "push": "push to the Hub if the recipe sets push_to_hub; needs model and card",
}
"""Optional outputs of a run; recipe.yaml, log.jsonl, checkpoints/ and metrics.json are always written."""

ALL_OUTPUTS = frozenset(OUTPUTS)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the contents of metrics.json, and the URL it was pushed to."""

    output_dir: Path
    metrics: dict[str, Any]
    hub_url: str | None = None


def prediction_rows(
    task: Task[Any], outputs: dict[str, Tensor], examples: Examples, split: Any
) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl: row id, path or text, reference (if there are labels), prediction, ...

    `split`: the data set of `examples`; it may have more rows.
    """
    inputs = _inputs(task, examples, split)
    rows = zip(examples.row_ids, inputs, examples.references, task.scorer.decode(outputs), strict=True)
    return [
        {"id": int(row_id), **given}
        | ({"reference": task.scorer.reference(reference)} if examples.labelled else {})
        | decoded
        for row_id, given, reference, decoded in rows
    ]


_INPUT_NAMES = {
    "data.text_column": "text",
    "data.text_pair_column": "text_pair",
    "data.image_column": "path",
    "data.audio_column": "path",
}
"""Recipe keys of input columns, and their names in predictions.jsonl."""


def _inputs(task: Task[Any], examples: Examples, split: Any) -> list[dict[str, Any]]:
    """Return {"text": ...} or {"path": ...} for every example; {} for an image or recording without a path."""
    columns = {_INPUT_NAMES[key]: column for key, column in task.reader.columns().items() if key in _INPUT_NAMES}
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
    """Return the contents of metrics.json.

    Args:
        training, state, model: the run at its end, and the model with the chosen weights.
        scores: metrics by role.
        baselines: see `sft_hf.jobs.baselines.compare`.
        overview: see `sft_hf.jobs.overview`.
        splits, source: the data, and the source of the pretrained model.
        total_seconds: since the command was started (or resumed).
    """
    recipe, accelerator = training.recipe, training.accelerator
    parameters = list(model.parameters())
    trained = [p for group in training.optimizer.param_groups for p in group["params"]]  # adapters are merged by now
    rows = len(training.data.examples) if isinstance(training.data, InMemoryEpochs) else None
    return {
        "task": recipe.task.name,
        "primary_metric": training.task.scorer.primary_metric,
        **{role: scores[role] for role in ("test", "validation") if role in scores},
        **({"baseline": baselines[0], "baselines": baselines} if baselines else {}),
        "train": {
            "runtime_seconds": round(state.seconds, 3),
            "total_seconds": round(total_seconds, 3),
            "examples_per_second": round(state.examples_seen / max(state.seconds, 1e-9), 3),
            "num_steps": state.step,
            "stopped_by": state.stopped_by,
            "num_epochs": None if rows is None else round(state.examples_seen / rows, 4),
            "num_examples": rows,
            "final_loss": state.loss,
            "best_step": state.best_step,
            "rows_per_forward_pass": -(-recipe.train.per_device_train_batch_size // 2**state.oom_splits),
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


def write_model(
    folder: RunFolder, record: RunRecord, task: Task[Any], model: Any, adapter: Adapter | None, *, card: bool
) -> None:
    """Write model/ and, for a parameter-efficient run, adapter/ in PEFT's format; with a README.md if `card`.

    Raises StorageError.
    """
    if adapter is not None:
        with committed_folder(folder.adapter) as aside:
            adapter.save(aside)
            if card:
                (aside / "README.md").write_text(adapter_card(record), encoding="utf-8")
    with committed_folder(folder.model) as aside:
        task.save(savable(model, adapter), aside)
        if card:
            page = build_card(record, pipeline_tag=record.recipe.task.pipeline_tag)
            (aside / "README.md").write_text(page, encoding="utf-8")


def push_run(recipe: Recipe, folder: RunFolder, repo_id: str) -> str:
    """Push a finished run to the Hub as set in its recipe, and return the URL. Raises UserError."""
    try:
        return push(folder.path, repo_id, private=recipe.hub_private_repo, revision=recipe.hub_revision).url
    except UserError as error:
        command = f"sft-hf push {shlex.quote(str(folder.path))} {repo_id}"
        raise UserError(f"the run finished but could not be pushed: {error}; to push it, run `{command}`") from error


# --- pages -------------------------------------------------------------------------------------------------------


def write_report(run: str | Path, output: str | Path | None = None, *, trust_remote_code: bool = False) -> Path:
    """Write a finished run's report to `output`, by default report.html in its folder, and return its path.

    Uses only the run folder, except that images and recordings are read again from the recipe's data; the report notes
    rows that cannot be read. Raises RunFolderError, RecipeError, StorageError.
    """
    record = with_outputs(read_record(run, trust_remote_code=trust_remote_code), run)
    texts = {row["id"]: Preview(_text_of(row)) for row in record.predictions if "text" in row}
    if texts.keys() >= set(rows_to_show(record)):
        page = build_report(record, texts)
    else:
        task: Task[Any] = task_class(record.recipe)(record.recipe)
        try:
            split = load_data(record.recipe, task, None).by_role.get(record.split)
        except SftError as error:
            log.warning("the data cannot be read; the report will not show any rows: %s", error)
            split = None
        page = report_page(record, task, split)
    path = Path(output or Path(run) / "report.html")
    write_text(path, page)
    return path


def _text_of(row: Mapping[str, Any]) -> str:
    return "\n".join(str(row[name]) for name in ("text", "text_pair") if name in row)


def write_comparison(runs: Sequence[str | Path], output: str | Path, *, trust_remote_code: bool = False) -> Path:
    """Write a report that compares finished runs, and return its path. Raises UserError for runs of different tasks."""
    from sft_hf.publishing.report.comparison import build_comparison

    records = [read_record(run, trust_remote_code=trust_remote_code) for run in runs]
    path = Path(output)
    write_text(path, build_comparison(records))
    return path


def report_page(record: RunRecord, task: Task[Any], split: Dataset | None) -> str:
    """Return the contents of report.html, with the worst mistakes on `split` and a gallery of its rows."""
    wanted = rows_to_show(record)
    shown = {} if split is None else shown_rows(task, split, wanted)
    gone = set(wanted) - shown.keys()
    missing = f"{len(gone)} of {len(wanted)} rows are listed without their content, which could not be read."
    return build_report(record, shown, missing if gone else "")


def shown_rows(task: Task[Any], split: Dataset, row_ids: Sequence[int]) -> dict[int, Preview]:
    """Return displayable rows by id; rows whose file is missing are left out and reported."""
    places = {row_id: index for index, row_id in enumerate(split[ROW_ID])}
    found: dict[int, Preview] = {}
    for row_id in row_ids:
        try:
            (found[row_id],) = task.reader.preview(split, [places[row_id]])
        except (SftError, KeyError) as error:
            log.warning("the report leaves row %d out: %s", row_id, error)
    return found
