"""Callbacks: user code that is called during training and may stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator

from sft_hf.core.errors import FailedElsewhere, UserError
from sft_hf.engine.process import on_any_rank


class Callback:
    """Base class of callbacks; override any of its methods.

    A method that returns True stops training after the current step. The run then ends as after early stopping: the
    model is evaluated and saved, and `train.stopped_by` in metrics.json names the callback. An exception ends the run
    with its traceback. In a distributed run every process calls its own callbacks, with the same arguments, and all
    processes stop if one callback requests it.
    """

    def on_log(self, line: dict[str, Any]) -> bool | None:
        """Called with each line of log.jsonl: step, epoch, loss, learning_rate, ... in training, or an evaluation."""
        return None

    def on_evaluate(self, step: int, metrics: dict[str, Any]) -> bool | None:
        """Called after each evaluation during training, with the validation metrics as fractions."""
        return None

    def on_step_end(self, step: int) -> bool | None:
        """Called after each optimizer step, counted from 1."""
        return None


class Callbacks:
    """The callbacks of a run, and their stop requests and errors since the processes last agreed on them."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """Raises UserError for an object that is not a Callback."""
        for callback in callbacks:
            if not isinstance(callback, Callback):
                hint = "an object, not the class: " if isinstance(callback, type) else ""
                raise UserError(f"callbacks: {callback!r:.80} is not a Callback; give {hint}instances of a subclass")
        self.callbacks = list(callbacks)
        self._asked: str | None = None
        self._error: Exception | None = None

    def log(self, line: dict[str, Any]) -> None:
        """Call `on_log` with a line of log.jsonl."""
        self._call(lambda callback: callback.on_log(dict(line)))

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """Call `on_evaluate` with the metrics of an evaluation."""
        self._call(lambda callback: callback.on_evaluate(step, dict(metrics)))

    def step_ended(self, step: int) -> None:
        """Call `on_step_end`."""
        self._call(lambda callback: callback.on_step_end(step))

    def _call(self, method: Callable[[Callback], bool | None]) -> None:
        """Call a method of each. An exception is kept for `agree`, so that no other process is left waiting."""
        for callback in self.callbacks:
            if self._error is not None:
                return
            try:
                if method(callback) is True and self._asked is None:
                    self._asked = type(callback).__name__
            except Exception as error:
                self._error = error

    def agree(self, accelerator: Accelerator) -> str | None:
        """Return the name of the callback that requested a stop on any process; None to continue.

        Raises the exception that a callback raised, and FailedElsewhere on the other processes.
        """
        if not self.callbacks:
            return None
        stop, failed = on_any_rank(accelerator, self._asked is not None, self._error is not None)
        error, asked = self._error, self._asked
        self._error = self._asked = None
        if error is not None:
            raise error
        if failed:
            raise FailedElsewhere(1)
        return (asked or "a callback of another process") if stop else None
