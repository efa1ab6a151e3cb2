"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing

from sft_hf.core import console, signals
from sft_hf.core.errors import Terminated
from sft_hf.data.examples import Examples
from sft_hf.engine import prefetch
from sft_hf.engine.batches import StepBatch
from sft_hf.engine.process import on_any_rank
from sft_hf.engine.state import Training, TrainState
from sft_hf.engine.step import StepResult, train_step
from sft_hf.models.freezing import set_modes

log = logging.getLogger("sft_hf")

LOGGING_STEPS = 10
FEW_STEPS = 50  # runs with fewer steps log each step


def train(training: Training, state: TrainState) -> None:
    """Train from `state` to the last step, evaluating, saving and logging as set in the recipe.

    Raises TrainingError when a loss or gradient is not finite, before the weights are updated, and Terminated on a
    signal, after saving a checkpoint.
    """
    set_modes(training.model)
    clock = _Clock(training.recipe.checkpoint.save_minutes)
    with closing(training.ahead), console.bar("training", training.num_steps, initial=state.step) as bar:
        if state.awaiting_evaluation:  # a signal interrupted the evaluation
            _evaluate(training, state)
        while not (state.stopped_early or state.step >= training.num_steps):
            examples, plan = training.data.epoch(state.epoch)
            for place, step_batch in enumerate(plan[state.step_in_epoch :], start=state.step_in_epoch + 1):
                more = place < len(plan) and state.step + 1 < training.num_steps
                training.upcoming = plan[place] if more and prefetch.pays(training.accelerator.device) else None
                _step(training, state, examples, step_batch, len(plan), bar)
                _after_step(training, state, clock)
                if state.stopped_early or state.step >= training.num_steps:
                    break


def _step(
    training: Training,
    state: TrainState,
    examples: Examples,
    step_batch: StepBatch,
    per_epoch: int,
    bar: console.Progress,
) -> None:
    started = time.perf_counter()
    training.techniques.before_step(training.model, state.step)
    result = train_step(training, examples, step_batch, state)
    _advance(state, result, time.perf_counter() - started, end_of_epoch=state.step_in_epoch + 1 == per_epoch)
    if state.step % _logging_steps(training) == 0 or state.step >= training.num_steps:
        _log_step(training, state, result, per_epoch, bar)
    elif bar.done - bar.initial < _logging_steps(training):  # before the first log line
        bar.note = _speed(state)
    bar.update()


def _logging_steps(training: Training) -> int:
    wanted = training.recipe.train.logging_steps
    if wanted != "auto":
        return wanted
    return 1 if training.num_steps < FEW_STEPS else LOGGING_STEPS


def _after_step(training: Training, state: TrainState, clock: _Clock) -> None:
    """Evaluate and save when due, on all ranks or on none; on a signal, save and raise Terminated."""
    recipe, accelerator = training.recipe, training.accelerator
    training.callbacks.step_ended(state.step)
    _stop_if_asked(training, state)
    last = state.stopped_early or state.step >= training.num_steps
    state.awaiting_evaluation = _due(recipe.eval.eval_steps, state, last)
    stop, late = on_any_rank(accelerator, signals.requested(), accelerator.is_main_process and clock.is_late())
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
        if training.evaluate(state):
            _stop(training, state, "early_stopping_patience")
    except Terminated as error:
        training.save(state)
        raise Terminated(_farewell(training, state)) from error
    _stop_if_asked(training, state)
    state.awaiting_evaluation = False


def _stop_if_asked(training: Training, state: TrainState) -> None:
    """Stop after this step if a callback requested it on any rank. Raises the exception of a callback."""
    if asked := training.callbacks.agree(training.accelerator):
        log.info("stopping early: %s asked for it after step %d", asked, state.step)
        _stop(training, state, asked)


def _stop(training: Training, state: TrainState, reason: str) -> None:
    state.stopped_early = True
    if state.stopped_by is None and state.step < training.num_steps:
        state.stopped_by = reason


def _farewell(training: Training, state: TrainState) -> str:
    done = f"step {state.step} of {training.num_steps}"
    return f"stopped by a signal after {done}; a checkpoint is saved: --resume continues (in Python: resume=True)"


class _Clock:
    """Timer for `save_minutes`; the main process's clock decides for all ranks."""

    def __init__(self, minutes: float | None) -> None:
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def is_late(self) -> bool:
        return time.monotonic() - self.since >= self.seconds


def _advance(state: TrainState, result: StepResult, seconds: float, end_of_epoch: bool) -> None:
    state.step += 1
    state.step_in_epoch = 0 if end_of_epoch else state.step_in_epoch + 1
    state.epoch += int(end_of_epoch)
    state.examples_seen += result.rows
    state.loss = result.loss
    state.seconds += seconds
    interval = state.interval or {"loss": 0.0, "rows": 0.0, "steps": 0.0, "seconds": 0.0}
    for name, value in {"loss": result.loss, "rows": result.rows, "steps": 1, "seconds": seconds}.items():
        interval[name] += value
    state.interval = interval


def _due(every: int | None, state: TrainState, last: bool) -> bool:
    """Return True every N steps, or at the end of each epoch if N is None; always after the last step."""
    return last or (state.step % every == 0 if every else state.step_in_epoch == 0)


def _log_step(
    training: Training, state: TrainState, result: StepResult, steps_per_epoch: int, bar: console.Progress
) -> None:
    interval = state.interval
    bar.tell(_speed(state))
    line = {
        "step": state.step,
        "epoch": round(state.epoch + state.step_in_epoch / steps_per_epoch, 4),
        "loss": interval["loss"] / interval["steps"],
        "learning_rate": training.scheduler.get_last_lr()[0],
        "grad_norm": result.grad_norm,
        "examples_per_second": round(interval["rows"] / max(interval["seconds"], 1e-9), 2),
    }
    state.interval = {}
    training.tell(line)


def _speed(state: TrainState) -> str:
    """Return loss and speed since the last line of the log."""
    interval = state.interval
    speed = interval["rows"] / max(interval["seconds"], 1e-9)
    return f"loss {interval['loss'] / interval['steps']:.4f}, {speed:.1f} examples/s"
