"""Console output: log lines and progress bars on standard error, from one process only."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from sft_hf.core import signals
from sft_hf.core.redaction import redact

T = TypeVar("T")

log = logging.getLogger("sft_hf")


def is_main_process() -> bool:
    """Whether this process prints: rank 0, from the launcher's environment variables."""
    return os.environ.get("RANK", "0") == "0"


class _Console(logging.StreamHandler[Any]):
    """Writes to the current standard error, above a progress bar if there is one, with secrets removed.

    A run continues when the reader of its log (head, a terminal) has gone.
    """

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with suppress(BrokenPipeError):
            tqdm.write(redact(self.format(record)), file=sys.stderr)


def set_up(quiet: bool = False) -> None:
    """Send the package's log to standard error, one line per message; only warnings if `quiet`."""
    if not any(isinstance(handler, _Console) for handler in log.handlers):
        log.addHandler(_Console())
        log.propagate = False
    log.setLevel(logging.WARNING if quiet or not is_main_process() else logging.INFO)


def show_log() -> None:
    """Set up the log for a program or notebook that has not done so; Python would show only warnings.

    Handlers or a level of this logger, or handlers of the root logger, are the program's own choice, and left alone;
    but those of the root logger in a notebook, where the notebook has put them.
    """
    in_notebook = "ipykernel" in sys.modules
    chosen = log.handlers or log.level != logging.NOTSET or (logging.root.handlers and not in_notebook)
    if not chosen and not log.isEnabledFor(logging.INFO):
        set_up()


def is_quiet() -> bool:
    """Whether only warnings and results are shown."""
    return not log.isEnabledFor(logging.INFO)


def colours() -> bool | None:
    """Return False if NO_COLOR is set (see no-color.org), else None, which is colors on terminals only."""
    return False if os.environ.get("NO_COLOR") else None


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar that shows up after two seconds, and only on a terminal.

    Raises Terminated between two items when a signal has asked the process to stop.
    """
    from tqdm import tqdm

    with tqdm(items, desc=description, total=total, delay=2, leave=False, disable=_bars_off()) as bar:
        for item in bar:
            signals.poll()
            yield item


def bar(description: str, total: int, initial: int = 0, unit: str = "step") -> Any:
    """Return a tqdm bar of the training loop."""
    from tqdm import tqdm

    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        disable=_bars_off(),
    )


def _bars_off() -> bool:
    return not sys.stderr.isatty() or is_quiet() or not is_main_process()
