"""Callbacks: code of the user's own that a training calls, and that may ask it to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator

from sft_hf.core.errors import FailedElsewhere, UserError
from sft_hf.engine.process import on_any_rank


class Callback:
    """Base of callbacks; override any of its methods.

    A method that returns True asks the training to stop after the current step. The run then ends as after an early
    stop: it is evaluated, saved and written, and `train.stopped_by` in metrics.json names the callback. An exception
    ends the run with its traceback. In a distributed run every process calls its own callbacks, with the same
    arguments, and all stop if one of them asks for it.
    """

    def on_log(self, line: dict[str, Any]) -> bool | None:
        """Receive a line of log.jsonl: of training with step, epoch, loss, learning_rate, ...; or of an evaluation."""
        return None

    def on_evaluate(self, step: int, metrics: dict[str, Any]) -> bool | None:
        """Receive the metrics on validation after a step, as fractions."""
        return None

    def on_step_end(self, step: int) -> bool | None:
        """Be called after each optimizer step, counted from 1."""
        return None


class Callbacks:
    """The callbacks of a run, and what they have asked for since the last agreement of all processes."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """Raise UserError for a callback that is not one."""
        for callback in callbacks:
            if not isinstance(callback, Callback):
                hint = "an object, not the class: " if isinstance(callback, type) else ""
                raise UserError(f"callbacks: {callback!r:.80} is not a Callback; give {hint}instances of a subclass")
        self.callbacks = list(callbacks)
        self._asked: str | None = None
        self._error: Exception | None = None

    def log(self, line: dict[str, Any]) -> None:
        """Pass a line of log.jsonl on."""
        self._call(lambda callback: callback.on_log(dict(line)))

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """Pass the metrics of an evaluation on."""
        self._call(lambda callback: callback.on_evaluate(step, dict(metrics)))

    def step_ended(self, step: int) -> None:
        """Tell that a step has ended."""
        self._call(lambda callback: callback.on_step_end(step))

    def _call(self, method: Callable[[Callback], bool | None]) -> None:
        """Call all of them. An exception waits for `agree`, where no other process is left waiting."""
        for callback in self.callbacks:
            if self._error is not None:
                return
            try:
                if method(callback) is True and self._asked is None:
                    self._asked = type(callback).__name__
            except Exception as error:
                self._error = error

    def agree(self, accelerator: Accelerator) -> str | None:
        """Return the callback that asked to stop, on all processes if it did on one; None: go on.

        Raises what a callback raised, and on the other processes FailedElsewhere.
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
