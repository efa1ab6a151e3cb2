"""THE training loop. Folds, searches, ensembles, every technique and every task run through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sft_hf import console
from sft_hf.data.batching import MicroBatch, Window
from sft_hf.errors import TrainingError
from sft_hf.recipe import Recipe
from sft_hf.tasks.base import Examples, Task, to_device


class TrainingData(Protocol):
    """Where epochs come from: a set that is all there, or a stream read piece by piece."""

    def epoch(self, index: int) -> tuple[Examples, list[Window]]:
        """Return the rows of epoch `index` and their batch plan, a pure function of the index."""


@dataclass
class TrainState:
    """How far a run has come. Plain numbers, so that it travels as JSON."""

    step: int = 0
    epoch: int = 0
    window: int = 0
    examples_seen: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    loss: float = math.nan
    seconds: float = 0.0  # in training steps alone: no evaluation, no saving
    interval: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainState:
        """Return the state that `to_json` wrote."""
        return cls(**{**data, "loss": math.nan if data["loss"] is None else data["loss"]})


@dataclass
class Training:
    """Everything the loop works on, put together by `sft_hf.run`."""

    recipe: Recipe
    task: Task[Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Accelerator
    data: TrainingData
    num_steps: int
    log: Callable[[dict[str, Any]], None]
    evaluate: Callable[[TrainState], bool]
    """Evaluate on validation, keep the weights if they are the best; True to stop early."""
    save: Callable[[TrainState], None]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step saw: its mean loss per item, the gradient's L2 norm before clipping, its rows."""

    loss: float
    grad_norm: float
    rows: int


def train(training: Training, state: TrainState) -> None:
    """Train from `state` to the last step, evaluating, saving and logging as the recipe says.

    Raises TrainingError when a loss or gradient is not finite, before the update that it would have spoilt.
    """
    recipe = training.recipe
    training.model.train()
    bar = console.bar("training", training.num_steps, initial=state.step)
    stop = state.step >= training.num_steps
    while not stop:
        examples, plan = training.data.epoch(state.epoch)
        for window in plan[state.window :]:
            started = time.perf_counter()
            result = train_step(training, examples, window, state.step)
            _advance(state, result, time.perf_counter() - started, end_of_epoch=state.window + 1 == len(plan))
            last = state.step >= training.num_steps
            if state.step % recipe.train.logging_steps == 0 or last:
                _log_step(training, state, result, len(plan), bar)
            bar.update()
            if _due(recipe.eval.eval_steps, state, last):
                stop = training.evaluate(state)
            if _due(recipe.checkpoint.save_steps, state, last or stop):
                training.save(state)
            if stop := stop or last:
                break
    bar.close()


def train_step(training: Training, examples: Examples, window: Window, step: int) -> StepResult:
    """One optimizer update over a window of rows.

    The loss is the sum of the losses of all rows, over all forward passes and ranks, divided by the number of items in
    that same window: how the window is cut into forward passes changes nothing.
    """
    task, accelerator = training.task, training.accelerator
    mine = window.micro_batches[accelerator.process_index]
    seed_step(training.recipe.seed, step, accelerator.process_index)
    batches = [task.collate([examples.features[row] for row in micro.rows]) for micro in mine]
    weights = [0.0 if micro.filler else 1.0 for micro in mine]
    counts = sum(weight * task.item_counts(batch).sum() for weight, batch in zip(weights, batches, strict=True))
    items = _sum_over_ranks(torch.as_tensor(counts, device=accelerator.device), accelerator)

    training.optimizer.zero_grad(set_to_none=True)
    row_losses: list[Tensor] = []
    for index, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        synchronize = index == len(batches) - 1
        with nullcontext() if synchronize else accelerator.no_sync(training.model):
            with accelerator.autocast():
                losses = task.losses(training.model, to_device(batch, accelerator.device)) * weight
            # DistributedDataParallel averages over ranks; the sum is what we want.
            accelerator.backward(losses.sum() * (accelerator.num_processes / items))
        row_losses.append(losses.detach())

    loss = float(_sum_over_ranks(torch.cat(row_losses).sum(), accelerator) / items)
    if not math.isfinite(loss):
        raise TrainingError(_blame(row_losses, mine, examples, step, accelerator))
    grad_norm = float(_clip(training))
    if not math.isfinite(grad_norm) and accelerator.scaler is None:  # a scaler skips such a step and shrinks its scale
        rows = sorted(int(examples.row_ids[row]) for row in window.rows())
        raise TrainingError(f"the gradient of step {step + 1} is not finite (rows {rows}); nothing was updated")
    training.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        training.scheduler.step()
    return StepResult(loss, grad_norm, len(window.rows()))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make a step's randomness (dropout) a function of (seed, step, rank), so that resuming has none to restore."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _clip(training: Training) -> Any:
    limit = training.recipe.train.max_grad_norm or math.inf
    return training.accelerator.clip_grad_norm_(training.model.parameters(), limit)


def _sum_over_ranks(value: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return value
    total: Tensor = accelerator.reduce(value, reduction="sum")
    return total


def _blame(
    row_losses: list[Tensor],
    mine: tuple[MicroBatch, ...],
    examples: Examples,
    step: int,
    accelerator: Accelerator,
) -> str:
    """Name the rows whose loss is not finite, the same words on every rank."""
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


def _advance(state: TrainState, result: StepResult, seconds: float, end_of_epoch: bool) -> None:
    state.step += 1
    state.window = 0 if end_of_epoch else state.window + 1
    state.epoch += int(end_of_epoch)
    state.examples_seen += result.rows
    state.loss = result.loss
    state.seconds += seconds
    interval = state.interval or {"loss": 0.0, "rows": 0.0, "steps": 0.0, "seconds": 0.0}
    for name, value in {"loss": result.loss, "rows": result.rows, "steps": 1, "seconds": seconds}.items():
        interval[name] += value
    state.interval = interval


def _due(every: int | None, state: TrainState, last: bool) -> bool:
    """Every so many steps; at the end of an epoch when no number is given; after the last step always."""
    return last or (state.step % every == 0 if every else state.window == 0)


def _log_step(training: Training, state: TrainState, result: StepResult, steps_per_epoch: int, bar: Any) -> None:
    interval = state.interval
    line = {
        "step": state.step,
        "epoch": round(state.epoch + state.window / steps_per_epoch, 4),
        "loss": interval["loss"] / interval["steps"],
        "learning_rate": training.scheduler.get_last_lr()[0],
        "grad_norm": result.grad_norm,
        "examples_per_second": round(interval["rows"] / max(interval["seconds"], 1e-9), 2),
    }
    state.interval = {}
    training.log(line)
    bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['examples_per_second']:.1f} examples/s", refresh=False)
