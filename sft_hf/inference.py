"""Using a finished run: score it again, apply it to new data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from sft_hf import process
from sft_hf.bootstrap import CONFIDENCE_SAMPLES
from sft_hf.errors import DataError, UserError, did_you_mean
from sft_hf.evaluation import batch_sizes, predict
from sft_hf.models.cpu_kernels import with_cpu_kernels
from sft_hf.recipe import Recipe, validate_recipe
from sft_hf.registry import load_component
from sft_hf.run_folder import load_run_recipe, open_run
from sft_hf.tasks.base import Examples, Task


def open_trained(
    run: str | Path, *, trust_remote_code: bool = False, **task_settings: Any
) -> tuple[Recipe, Task[Any], Any]:
    """Return recipe, task and model of a finished run.

    `trust_remote_code` allows a model with code of its own, as the run was; `task_settings` replace the recipe's.
    Raises UserError for one that the task does not have, RunFolderError, CheckpointError, RecipeError.
    """
    folder = open_run(run)
    recipe = load_run_recipe(folder.path, trust_remote_code=trust_remote_code)
    for name in task_settings:
        if not hasattr(recipe.task, name):
            raise UserError(f"{run}: {recipe.task.name} has no {name}; that is for speech recognition")
    if task_settings:
        settings = {**recipe.task.model_dump(mode="json"), **task_settings}
        recipe = validate_recipe({**recipe.model_dump(mode="json"), "task": settings}, str(run))
    task, model = load_component("tasks", recipe.task.name).restore(recipe, folder.model)
    return recipe, task, model.eval()


def evaluate_run(
    run: str | Path, split: str = "test", *, mixed_precision: str = "no", trust_remote_code: bool = False
) -> dict[str, Any]:
    """Score a run's model on one of its splits again, and return the metrics with intervals and per-class figures.

    Raises RunFolderError for a folder that holds no finished run, DataError for a split that it has not.
    """
    from sft_hf.run_inputs import load_data  # with `datasets`: half a second, which `predict` need not wait for

    recipe, task, model = open_trained(run, trust_remote_code=trust_remote_code)
    accelerator = process.build_accelerator(mixed_precision, recipe.train.num_threads)
    splits = load_data(recipe, task, None)
    if split not in splits.by_role:
        raise DataError(f"no split {split!r} in this run's data; {did_you_mean(split, splits.by_role)}")
    if recipe.data.streaming and split == "train":
        raise DataError("the rows of a stream (data.streaming) are not kept to be scored; evaluate another split")
    examples = task.prepare(splits.by_role[split], splits.where[split])
    if not examples.labelled:
        raise DataError(
            f"{splits.where[split]}: its rows have no labels, so there is nothing to score; the run's "
            "predictions.jsonl holds its predictions, and `sft-hf predict` answers other rows"
        )
    outputs = predict(
        task,
        model.to(accelerator.device),
        examples,
        accelerator,
        **batch_sizes(recipe, task, accelerator),
        description=f"evaluating {split}",
    )
    return task.score(outputs, examples, CONFIDENCE_SAMPLES)


def predict_inputs(
    run: str | Path,
    inputs: Sequence[str],
    *,
    batch_size: int | None = None,
    mixed_precision: str | None = None,
    trust_remote_code: bool = False,
    **task_settings: Any,
) -> Iterator[dict[str, Any]]:
    """Yield one prediction per input, in input order: the input's own columns, `prediction` and `confidence`.

    Inputs are read and answered a chunk at a time, so a file may be larger than memory. With `timestamps=True`, speech
    gets `segments`: {"start", "end", "text"}, in seconds. `mixed_precision` is no (float32, what a pipeline says),
    bf16, fp16 or auto (what the hardware multiplies); None: the task's own. Classifiers compute close calls again in
    float32, so that reduced precision moves confidences, and hardly an answer. Raises RunFolderError, DataError,
    UserError.
    """
    recipe, task, model = open_trained(run, trust_remote_code=trust_remote_code, **task_settings)
    accelerator = process.build_accelerator(mixed_precision or task.predict_precision, recipe.train.num_threads)
    model.to(accelerator.device)
    if accelerator.mixed_precision == "bf16":
        with_cpu_kernels(model)
    number = 0
    for rows in task.read_inputs(inputs):
        examples = task.prepare_inputs(rows)
        outputs = _outputs(task, model, examples, accelerator, batch_sizes(recipe, task, accelerator, rows=batch_size))
        for row, decoded in zip(rows, task.decode_inputs(outputs, examples), strict=True):
            yield {"id": number, **row, **decoded}
            number += 1
    if number == 0:
        raise DataError("there is nothing to predict: the input holds no rows")


def _outputs(
    task: Task[Any], model: nn.Module, examples: Examples, accelerator: Accelerator, sizes: dict[str, Any]
) -> dict[str, Tensor]:
    """What the model says of the rows; where reduced precision might have changed an answer, in float32."""
    outputs = predict(task, model, examples, accelerator, **sizes, description="predicting")
    close = None if accelerator.mixed_precision == "no" else task.close_calls(outputs)
    if close is None or not close.any():
        return outputs
    rows = close.nonzero()[:, 0].tolist()
    features = [examples.features[row] for row in rows]
    again = replace(examples, features=features, lengths=examples.lengths[rows], row_ids=examples.row_ids[rows])
    exact = predict(task, model, again, accelerator, **sizes, description="close calls", autocast=False)
    return {name: tensor.index_put((close,), exact[name]) for name, tensor in outputs.items()}
