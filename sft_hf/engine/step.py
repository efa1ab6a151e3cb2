"""One optimizer step: the gradient does not depend on how rows are divided into forward passes and over ranks.

The ranks first sum the number of items in the step. After that, they do not communicate until every rank has processed
its rows. So a rank that runs out of memory does not leave the others waiting: all learn of it in the same reduction,
split their forward passes in half, and repeat the step.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sft_hf.core.errors import TrainingError
from sft_hf.data.examples import Examples
from sft_hf.engine.batches import MicroBatch, StepBatch
from sft_hf.engine.process import free_memory, is_out_of_memory, sum_over_ranks

if TYPE_CHECKING:
    from sft_hf.engine.state import Training, TrainState
    from sft_hf.techniques.base import TrainBatch

log = logging.getLogger("sft_hf")

BUCKET_BYTES = 1 << 26  # gradients are reduced in buckets of this size, so that only one bucket is copied at a time


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step: mean loss per item, L2 norm of the gradient before clipping, number of rows."""

    loss: float
    grad_norm: float
    rows: int


@dataclass(frozen=True)
class _Passes:
    """Results of a rank's forward and backward passes over a step."""

    losses: list[Tensor]  # of each pass, per row
    items: Tensor  # of the step, over all ranks
    out_of_memory: bool


def train_step(training: Training, examples: Examples, step_batch: StepBatch, state: TrainState) -> StepResult:
    """Run one optimizer step.

    The loss is the sum of the losses of all rows, over all forward passes and ranks, divided by the number of items in
    the step, so it does not depend on how rows are divided into forward passes. When memory runs out, the passes are
    split in half, in this step and all later ones (`state.oom_splits`).

    Raises TrainingError when a loss or gradient is not finite, before the weights are updated, and when memory does not
    suffice for one row at a time.
    """
    step = state.step

    def compute(keep_statistics: bool = True) -> float:
        return _gradients(training, examples, step_batch, state, keep_statistics)

    loss = training.techniques.compute_gradients(training.model, compute)
    training.techniques.change_gradients(training.model)
    grad_norm = float(_clip(training))
    scaler = training.accelerator.scaler
    if not math.isfinite(grad_norm) and scaler is None:  # a scaler skips such a step and shrinks its scale
        rows = sorted(int(examples.row_ids[row]) for row in step_batch.rows())
        raise TrainingError(f"the gradient of step {step + 1} is not finite (rows {rows}); no update was made")
    training.optimizer.step()
    if not training.accelerator.optimizer_step_was_skipped:
        training.scheduler.step()
        training.techniques.after_step(training.model, step + 1)
    return StepResult(loss, grad_norm, len(step_batch.rows()))


def _gradients(
    training: Training, examples: Examples, step_batch: StepBatch, state: TrainState, keep_statistics: bool
) -> float:
    """Compute the gradient of the step's mean loss over all ranks into `.grad`, and return that loss."""
    accelerator, step = training.accelerator, state.step
    statistics = _running_statistics(training.norms)
    before = [value.clone() for value in statistics]
    while True:
        mine = cut(step_batch.micro_batches[accelerator.process_index], state.oom_splits)
        seed_step(training.recipe.seed, step, accelerator.process_index)
        batches = training.ahead.take(
            (step, state.oom_splits), partial(_collate, training, examples, step_batch, state)
        )
        if training.upcoming is not None:
            following = replace(state, step=step + 1)
            make = partial(_collate, training, examples, training.upcoming, following)
            training.ahead.start((step + 1, state.oom_splits), make)
        passes = _forward_backward(training, mine, batches)
        total, out_of_memory, has_gradient = _reduce_flags(training, passes)
        if not out_of_memory:
            break
        _put_back(statistics, before)
        _halve(training, state)

    loss = float(total / passes.items)
    if not math.isfinite(loss):
        raise TrainingError(_blame(passes.losses, mine, examples, step, accelerator))
    _sum_gradients(training.model, has_gradient, accelerator)
    if keep_statistics:
        _average(statistics, accelerator)
    else:
        _put_back(statistics, before)
    return loss


def _put_back(values: list[Tensor], before: list[Tensor]) -> None:
    for value, old in zip(values, before, strict=True):
        value.copy_(old)


def cut(batches: tuple[MicroBatch, ...], oom_splits: int) -> tuple[MicroBatch, ...]:
    """Split forward passes into 2**oom_splits smaller ones."""
    if not oom_splits:
        return batches
    return tuple(piece for batch in batches for piece in batch.split(2**oom_splits))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed all generators from (seed, step, rank), so that resuming has no random state to restore.

    Includes NumPy's, which SpecAugment in Transformers uses.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint64)
    number = int(words[0] >> np.uint64(1))
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # without a GPU, torch.manual_seed records a stack trace on each call
        torch.default_generator.manual_seed(number)
    np.random.seed(int(words[1] & np.uint64(0xFFFFFFFF)))
    random.seed(int(words[1]))


def _collate(training: Training, examples: Examples, step_batch: StepBatch, state: TrainState) -> list[TrainBatch]:
    """Return this rank's batches of the step, a function of the arguments alone, so that any thread may call it."""
    techniques, device = training.techniques, training.accelerator.device
    mine = cut(step_batch.micro_batches[training.accelerator.process_index], state.oom_splits)
    partners = techniques.partners(step_batch.rows(), state.step)
    batches = (techniques.collate(training.task, examples, one, partners, state.step) for one in mine)
    return [batch.pinned(device) for batch in batches]


def _forward_backward(training: Training, mine: tuple[MicroBatch, ...], batches: list[TrainBatch]) -> _Passes:
    task, accelerator, techniques = training.task, training.accelerator, training.techniques
    weights = [0.0 if micro.filler else 1.0 for micro in mine]
    counts = sum(weight * task.item_counts(batch.inputs).sum() for weight, batch in zip(weights, batches, strict=True))
    items = sum_over_ranks(torch.as_tensor(counts, device=accelerator.device), accelerator)
    training.optimizer.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    out_of_memory = False
    try:
        for batch, weight in zip(batches, weights, strict=True):
            with accelerator.autocast():
                row_losses = techniques.losses(task, training.model, batch.to(accelerator.device)) * weight
            loss = row_losses.sum() * (1 / items)
            accelerator.scaler.scale(loss).backward() if accelerator.scaler else loss.backward()
            losses.append(row_losses.detach())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    return _Passes(losses, items, out_of_memory)


def _reduce_flags(training: Training, passes: _Passes) -> tuple[Tensor, bool, list[bool]]:
    """Return the step's summed loss, whether a rank ran out of memory, and which parameters have a gradient."""
    device = training.accelerator.device
    loss = torch.cat(passes.losses).sum() if passes.losses else torch.zeros((), device=device)
    if training.accelerator.num_processes == 1:
        return loss, passes.out_of_memory, []
    marks = [parameter.grad is not None for parameter in training.model.parameters()]
    flags = torch.tensor([passes.out_of_memory, *marks], dtype=torch.float32, device=device)
    total = sum_over_ranks(torch.cat([loss.float().reshape(1), flags]), training.accelerator)
    return total[0], bool(total[1] > 0), (total[2:] > 0).tolist()


def _halve(training: Training, state: TrainState) -> None:
    size = training.recipe.train.per_device_train_batch_size
    training.optimizer.zero_grad(set_to_none=True)
    free_memory(training.accelerator.device)
    if 2**state.oom_splits >= size:
        raise TrainingError(
            f"out of memory in step {state.step + 1} with one row per forward pass; nothing was updated. Use a smaller "
            "model, shorter rows (task.max_length, task.max_seconds), or train.mixed_precision: bf16"
        )
    state.oom_splits += 1
    log.warning(
        "out of memory in step %d: from now on at most %d rows per forward pass instead of %d, with the same effective "
        "batch and gradients%s",
        state.step + 1,
        -(-size // 2**state.oom_splits),
        size,
        " (except for batch norm, whose statistics are computed over fewer rows)"
        if _running_statistics(training.norms)
        else "",
    )


def _sum_gradients(model: nn.Module, has_gradient: list[bool], accelerator: Accelerator) -> None:
    """Sum the gradients over all ranks; a parameter that a rank did not use has gradient zero there."""
    if accelerator.num_processes == 1:
        return
    bucket: list[Tensor] = []
    for parameter, used in zip(model.parameters(), has_gradient, strict=True):
        if not used:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (
            bucket[0].dtype != parameter.grad.dtype
            or sum(gradient.nbytes for gradient in bucket) + parameter.grad.nbytes > BUCKET_BYTES
        ):
            _sum_in_place(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum_in_place(bucket)


def _sum_in_place(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def _running_statistics(norms: list[_NormBase]) -> list[Tensor]:
    """Return running means, variances and counts, except those of frozen layers, which do not change."""
    return [buffer for norm in norms if norm.training for buffer in norm.buffers(recurse=False)]


def _average(statistics: list[Tensor], accelerator: Accelerator) -> None:
    """Average running statistics over ranks, each of which has seen different rows."""
    floats = [value for value in statistics if value.is_floating_point()]
    if accelerator.num_processes > 1 and floats:
        _sum_in_place(floats)
        for value in floats:
            value.div_(accelerator.num_processes)


def _clip(training: Training) -> Any:
    limit = training.recipe.train.max_grad_norm or math.inf
    training.accelerator.unscale_gradients()
    return torch.nn.utils.clip_grad_norm_(training.parameters, limit)


def _blame(
    row_losses: list[Tensor],
    mine: tuple[MicroBatch, ...],
    examples: Examples,
    step: int,
    accelerator: Accelerator,
) -> str:
    """Return a message naming the rows whose loss is not finite, the same on every rank."""
    rows = [row for micro in mine for row in micro.rows]
    bad = [
        int(examples.row_ids[row])
        for row, loss in zip(rows, torch.cat(row_losses).tolist(), strict=True)
        if not math.isfinite(loss)
    ]
    if accelerator.num_processes > 1:
        tensor = torch.tensor(bad or [-1], dtype=torch.int64, device=accelerator.device)
        gathered = accelerator.gather(accelerator.pad_across_processes(tensor, pad_index=-1))
        bad = [row for row in gathered.tolist() if row >= 0]
    return (
        f"the loss of step {step + 1} is not finite, in train row(s) with id {sorted(set(bad))}; nothing was updated. "
        "Look at these rows, or lower optim.learning_rate"
    )
