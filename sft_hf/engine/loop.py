"""THE training loop. Folds, searches, ensembles, every technique and every task run through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sft_hf.core import console
from sft_hf.core import signals as interruption
from sft_hf.core.errors import Terminated
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.data.examples import Examples
from sft_hf.engine import prefetch
from sft_hf.engine.batches import Window
from sft_hf.engine.prefetch import OneAhead
from sft_hf.engine.process import on_any_rank
from sft_hf.engine.step import StepResult, train_step
from sft_hf.engine.technique_stack import TechniqueStack
from sft_hf.models.freezing import set_modes
from sft_hf.tasks.base import Task

LOGGING_STEPS = 10
FEW_STEPS = 50  # below which each step is logged


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
    best_loss: float | None = None  # validation loss of the best step
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    awaiting_evaluation: bool = False  # the evaluation due after this step has not been finished
    stopped_early: bool = False
    halvings: int = 0  # how often memory ran out: see `sft_hf.engine.step`
    prefix_cached: bool | None = None  # whether the frozen part is served: see `sft_hf.engine.frozen_features.build`
    loss: float = math.nan
    seconds: float = 0.0  # in training steps alone: no evaluation, no saving
    interval: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainState:
        """Return the state that `to_json` wrote. Raises KeyError naming a field that is missing or unknown."""
        data = {"best_loss": None, **data}  # checkpoints of earlier versions have none
        if wrong := {name.name for name in fields(cls)} ^ data.keys():
            raise KeyError(f"train_state.{min(wrong)}")
        return cls(**{**data, "loss": math.nan if data["loss"] is None else data["loss"]})


@dataclass
class Training:
    """Everything the loop works on, put together by `sft_hf.jobs.finetune`."""

    recipe: Recipe
    task: Task[Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Accelerator
    data: TrainingData
    techniques: TechniqueStack
    num_steps: int
    log: Callable[[dict[str, Any]], None]
    evaluate: Callable[[TrainState], bool]
    """Evaluate on validation, keep the weights if they are the best; True to stop early."""
    save: Callable[[TrainState], None]
    upcoming: Window | None = None
    """The rows of the step after the one that is being computed, where they are known."""
    ahead: OneAhead[Any] = field(default_factory=OneAhead)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The model's, in its order: finding them takes as long as a small step."""
        return list(self.model.parameters())

    @cached_property
    def norms(self) -> list[_NormBase]:
        """The model's batch norms."""
        return [module for module in self.model.modules() if isinstance(module, _NormBase)]


def train(training: Training, state: TrainState) -> None:
    """Train from `state` to the last step, evaluating, saving and logging as the recipe says.

    Raises TrainingError when a loss or gradient is not finite, before the update that it would have spoilt, and
    Terminated when a signal asked for it, after a checkpoint was saved.
    """
    set_modes(training.model)
    clock = _Clock(training.recipe.checkpoint.save_minutes)
    with closing(training.ahead), console.bar("training", training.num_steps, initial=state.step) as bar:
        if state.awaiting_evaluation:  # saved by a signal that came during the evaluation
            _evaluate(training, state)
        while not (state.stopped_early or state.step >= training.num_steps):
            examples, plan = training.data.epoch(state.epoch)
            for place, window in enumerate(plan[state.window :], start=state.window + 1):
                more = place < len(plan) and state.step + 1 < training.num_steps
                training.upcoming = plan[place] if more and prefetch.pays(training.accelerator.device) else None
                _step(training, state, examples, window, len(plan), bar)
                _after_step(training, state, clock)
                if state.stopped_early or state.step >= training.num_steps:
                    break


def _step(training: Training, state: TrainState, examples: Examples, window: Window, per_epoch: int, bar: Any) -> None:
    started = time.perf_counter()
    training.techniques.before_step(training.model, state.step)
    result = train_step(training, examples, window, state)
    _advance(state, result, time.perf_counter() - started, end_of_epoch=state.window + 1 == per_epoch)
    if state.step % _logging_steps(training) == 0 or state.step >= training.num_steps:
        _log_step(training, state, result, per_epoch, bar)
    bar.update()


def _logging_steps(training: Training) -> int:
    wanted = training.recipe.train.logging_steps
    if wanted != "auto":
        return wanted
    return 1 if training.num_steps < FEW_STEPS else LOGGING_STEPS


def _after_step(training: Training, state: TrainState, clock: _Clock) -> None:
    """Evaluate and save where it is due, on all ranks or on none; save and leave if a signal asked for it."""
    recipe, accelerator = training.recipe, training.accelerator
    last = state.step >= training.num_steps
    state.awaiting_evaluation = _due(recipe.eval.eval_steps, state, last)
    stop, late = on_any_rank(accelerator, interruption.requested(), accelerator.is_main_process and clock.is_late())
    if state.awaiting_evaluation and not stop:
        _evaluate(training, state)
    last = last or state.stopped_early
    if stop or late or _due(recipe.checkpoint.save_steps, state, last):
        training.save(state)
        clock.restart()
    if stop:
        raise Terminated(_farewell(training, state))


def _evaluate(training: Training, state: TrainState) -> None:
    try:
        state.stopped_early = training.evaluate(state)
    except Terminated as error:
        training.save(state)
        raise Terminated(_farewell(training, state)) from error
    state.awaiting_evaluation = False


def _farewell(training: Training, state: TrainState) -> str:
    done = f"step {state.step} of {training.num_steps}"
    return f"stopped by a signal after {done}; a checkpoint is saved: --resume continues (in Python: resume=True)"


class _Clock:
    """Tells when it is time to save; one rank's clock decides for all."""

    def __init__(self, minutes: float | None) -> None:
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def is_late(self) -> bool:
        return time.monotonic() - self.since >= self.seconds


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
