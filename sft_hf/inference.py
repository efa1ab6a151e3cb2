"""Using a finished run: score it again, apply it to new data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sft_hf import process
from sft_hf.bootstrap import CONFIDENCE_SAMPLES
from sft_hf.errors import DataError, UserError, did_you_mean
from sft_hf.evaluation import predict
from sft_hf.models.cpu_kernels import with_cpu_kernels
from sft_hf.recipe import Recipe
from sft_hf.registry import load_component
from sft_hf.run_folder import load_run_recipe, open_run
from sft_hf.tasks.base import Task

log = logging.getLogger("sft_hf")

CPU_POSITIONS = 2048
"""Tokens of a forward pass on a CPU: larger ones leave its caches, and take a quarter longer for each token."""


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
    recipe.task = recipe.task.model_copy(update=task_settings)
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
    examples = task.prepare(splits.by_role[split], splits.where[split])
    outputs = predict(
        task,
        model.to(accelerator.device),
        examples,
        accelerator,
        **_batches(recipe, task, accelerator, None),
        description=f"evaluating {split}",
    )
    return task.score(outputs, examples, CONFIDENCE_SAMPLES)


def predict_inputs(
    run: str | Path,
    inputs: Sequence[str],
    *,
    batch_size: int | None = None,
    mixed_precision: str = "no",
    trust_remote_code: bool = False,
    **task_settings: Any,
) -> Iterator[dict[str, Any]]:
    """Yield one prediction per input, in input order: the input's own columns, `prediction` and `confidence`.

    Inputs are read and answered a chunk at a time, so a file may be larger than memory. With `timestamps=True`, speech
    gets `segments`: {"start", "end", "text"}, in seconds. `mixed_precision` is no, bf16, fp16 or auto (what the
    hardware multiplies); all but no are said in the log. Raises RunFolderError, DataError, UserError.
    """
    recipe, task, model = open_trained(run, trust_remote_code=trust_remote_code, **task_settings)
    accelerator = process.build_accelerator(mixed_precision, recipe.train.num_threads)
    model.to(accelerator.device)
    if accelerator.mixed_precision != "no":
        precision = accelerator.mixed_precision
        log.info(
            "%s: confidences may differ from float32's in the third decimal; mixed precision `no` is exact", precision
        )
    if accelerator.mixed_precision == "bf16":
        with_cpu_kernels(model)
    number = 0
    for rows in task.read_inputs(inputs):
        examples = task.prepare_inputs(rows)
        outputs = predict(
            task,
            model,
            examples,
            accelerator,
            **_batches(recipe, task, accelerator, batch_size),
            description="predicting",
        )
        for row, decoded in zip(rows, task.decode_inputs(outputs, examples), strict=True):
            yield {"id": number, **row, **decoded}
            number += 1
    if number == 0:
        raise DataError("there is nothing to predict: the input holds no rows")


def _batches(recipe: Recipe, task: Task[Any], accelerator: Accelerator, rows: int | None) -> dict[str, Any]:
    """How many rows share a forward pass: `rows`, or no more positions than the run's evaluation had in its largest."""
    size = rows or recipe.eval.per_device_eval_batch_size
    longest = task.longest_row()
    if rows or longest is None:
        return {"batch_size": size}
    positions = size * longest
    return {"batch_size": size, "positions": min(positions, CPU_POSITIONS) if _on_cpu(accelerator) else positions}


def _on_cpu(accelerator: Accelerator) -> bool:
    return bool(accelerator.device.type == "cpu")
