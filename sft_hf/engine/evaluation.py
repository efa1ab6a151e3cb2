"""The evaluation and prediction loop: each row once, sharded over ranks, with outputs in row order."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sft_hf.core.console import progress
from sft_hf.core.errors import Terminated, TrainingError
from sft_hf.data.examples import Examples
from sft_hf.engine.batches import plan_evaluation
from sft_hf.engine.process import free_memory, is_out_of_memory, on_any_rank
from sft_hf.tasks.base import Task, to_device

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import Recipe

log = logging.getLogger("sft_hf")


CPU_POSITIONS = 2048
"""Tokens per forward pass in float32 on a CPU: larger batches exceed its caches and take a quarter longer per token.
In bf16, with half the size, twice as many: smaller batches take a sixth longer."""


def batch_sizes(
    recipe: Recipe, task: Task[Any], accelerator: Accelerator, *, rows: int | None = None, autocast: bool = True
) -> dict[str, Any]:
    """Return the batch-size arguments of `predict`, from the recipe or from `rows`.

    A batch of N texts has at most as many tokens as N of the longest rows, and on a CPU no more than fit its caches.
    """
    size = rows or recipe.eval.per_device_eval_batch_size
    longest = task.longest_row()
    if rows or longest is None:
        return {"batch_size": size}
    positions = size * longest
    if accelerator.device.type == "cpu":
        reduced = autocast and accelerator.mixed_precision != "no"
        positions = min(positions, CPU_POSITIONS * (2 if reduced else 1))
    return {"batch_size": size, "positions": positions}


def predict(
    task: Task[Any],
    model: nn.Module,
    examples: Examples,
    accelerator: Accelerator,
    *,
    batch_size: int,
    positions: int | None = None,
    description: str = "evaluating",
    autocast: bool = True,
) -> dict[str, Tensor]:
    """Run the model over the examples, sharded over ranks without padding rows.

    Args:
        batch_size: rows per rank and forward pass.
        positions: see `plan_evaluation`.
        autocast: compute in the accelerator's mixed precision; False computes in the precision of the saved model, as
            anyone who loads it does.

    Returns:
        The outputs of `task.predict_batch`, on the CPU, rows in the order of `examples`, the same on every rank.

    Raises Terminated, on all ranks, when one of them received a signal to stop.
    """
    sizes: dict[str, Any] = {"batch_size": batch_size, "positions": positions}
    plan = plan_evaluation(examples.lengths, world_size=accelerator.num_processes, **sizes)
    # A rank without rows still runs one, marked -1: the collective operations need the shapes of its outputs.
    mine = plan[accelerator.process_index]
    rows = np.array([row for batch in mine for row in batch] or [-1], dtype=np.int64)
    mine = mine or [[0]]
    modes = [(module, module.training) for module in model.modules()]  # frozen parts stay in evaluation mode
    model.eval()
    collected: list[dict[str, Tensor]] = []
    interrupted = False
    try:
        # One autocast context around all batches, so that each weight is cast once; in `inference_mode` it is not.
        with torch.no_grad(), accelerator.autocast() if autocast else nullcontext():
            for batch_rows in progress(mine, description, len(mine)):
                collected += _forward(task, model, examples, batch_rows, accelerator)
    except Terminated:
        interrupted = True
    for module, mode in modes:
        module.training = mode
    if any(on_any_rank(accelerator, interrupted)):  # on all ranks: otherwise the others would wait forever
        raise Terminated(f"stopped by a signal while {description}; --resume continues (in Python: resume=True)")
    return _in_row_order(collected, rows, len(examples), accelerator)


def _forward(
    task: Task[Any], model: nn.Module, examples: Examples, rows: list[int], accelerator: Accelerator
) -> list[dict[str, Tensor]]:
    """Run the model over some rows, in halves if memory runs out. Raises TrainingError if one row does not fit."""
    try:
        # Outside autocast, which would compute spectrograms and resized images in reduced precision.
        with torch.autocast(accelerator.device.type, enabled=False):
            batch = to_device(task.collate([examples.features[row] for row in rows]), accelerator.device)
        outputs = task.predict_batch(model, batch)
        return [{name: tensor.cpu() for name, tensor in outputs.items()}]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(accelerator.device)  # only here, where the exception no longer references the failed pass
    if len(rows) == 1:
        raise TrainingError(f"out of memory in the evaluation of a single row (id {int(examples.row_ids[rows[0]])})")
    log.warning(
        "out of memory in evaluation: splitting the batch of %d rows in two (eval.per_device_eval_batch_size)",
        len(rows),
    )
    middle = len(rows) // 2
    halves = rows[:middle], rows[middle:]
    return [part for half in halves for part in _forward(task, model, examples, half, accelerator)]


def _in_row_order(
    collected: list[dict[str, Tensor]], rows: np.ndarray, total: int, accelerator: Accelerator
) -> dict[str, Tensor]:
    merged = {"row": torch.from_numpy(rows)}
    for name in collected[0]:
        merged[name] = concatenate([outputs[name] for outputs in collected])
    if accelerator.num_processes > 1:
        merged = _gather(merged, accelerator)
    order = torch.argsort(merged.pop("row"))
    if len(order) != total:
        raise AssertionError(f"{len(order)} outputs for {total} rows")
    return {name: tensor[order] for name, tensor in merged.items()}


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenate batches whose later dimensions may differ (sequences), padding with -100."""
    shapes = {tensor.shape[1:] for tensor in tensors}
    if len(shapes) > 1:
        widest = torch.tensor([list(shape) for shape in shapes]).amax(dim=0).tolist()
        tensors = [_widen(tensor, widest) for tensor in tensors]
    return torch.cat(tensors)


def _widen(tensor: Tensor, shape: list[int]) -> Tensor:
    wide = tensor.new_full((len(tensor), *shape), -100)
    wide[tuple(slice(size) for size in tensor.shape)] = tensor
    return wide


def _gather(merged: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Gather the rows of all ranks; ranks may have different numbers of rows, so they are padded, with row -1."""
    gathered = {}
    for name, tensor in merged.items():
        value = tensor.to(accelerator.device)
        for dimension in range(value.ndim):
            value = accelerator.pad_across_processes(value, dim=dimension, pad_index=-1 if name == "row" else -100)
        gathered[name] = accelerator.gather(value).cpu()
    real = gathered["row"] >= 0
    return {name: tensor[real] for name, tensor in gathered.items()}
