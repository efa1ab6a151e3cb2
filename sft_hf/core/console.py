"""Console output: log lines and progress bars on standard error, from one process only.

Bars are for terminals. Without one (the log of a job or of CI), a line every 30 seconds reports the progress.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

from sft_hf.core import signals
from sft_hf.core.redaction import redact

T = TypeVar("T")

log = logging.getLogger("sft_hf")

LINE_SECONDS = 30.0
"""Interval between progress lines when there is no terminal."""


def is_main_process() -> bool:
    """Whether this process prints: rank 0, from the launcher's environment variables."""
    return os.environ.get("RANK", "0") == "0"


class _Console(logging.StreamHandler):  # not generic in Python 3.10
    """Writes to the current standard error, above a progress bar if there is one, with secrets removed.

    A closed pipe (`| head`, a closed terminal) does not stop the run.
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


def write_utf8() -> None:
    """Use UTF-8 for the standard streams on Windows, whose code pages lack most characters."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if os.name == "nt" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")


def show_log() -> None:
    """Set up the log for a program or notebook that has not done so; by default, Python shows only warnings.

    Does nothing if the program has configured this logger (a handler or a level) or the root logger (a handler). In
    notebooks, handlers of the root logger do not count: the notebook itself installs them.
    """
    chosen = log.handlers or log.level != logging.NOTSET or (logging.root.handlers and not in_notebook())
    if not chosen and not log.isEnabledFor(logging.INFO):
        set_up()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def is_quiet() -> bool:
    """Whether only warnings and results are shown."""
    return not log.isEnabledFor(logging.INFO)


def colours() -> bool | None:
    """Return False if NO_COLOR is set (see no-color.org), else None (colors on terminals only)."""
    return False if os.environ.get("NO_COLOR") else None


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar, shown after two seconds on a terminal or in a notebook; elsewhere, see `working`.

    Raises Terminated between two items if a signal has asked the process to stop.
    """
    from tqdm import tqdm

    shown = tqdm(items, desc=description, total=total, delay=2, leave=False, disable=_bars_off())
    with shown as bar, working(description, total) as counted:
        for item in bar:
            signals.poll()
            yield item
            counted.update()


@contextmanager
def bar(description: str, total: int, initial: int = 0, unit: str = "step") -> Iterator[Progress]:
    """Show the progress of the training loop: a bar on a terminal; elsewhere, see `working`."""
    from tqdm import tqdm

    options: Any = {"unit": unit, "leave": False, "dynamic_ncols": True, "disable": _bars_off()}
    with (
        tqdm(desc=description, total=total, initial=initial, **options) as shown,
        working(description, total, initial, unit, shown) as counted,
    ):
        yield counted


@contextmanager
def working(
    description: str, total: int | None = None, initial: int = 0, unit: str = "", bar: Any = None
) -> Iterator[Progress]:
    """Log progress every LINE_SECONDS if no bar can be shown.

    Of nested blocks, only the innermost is reported. Nothing is logged with --quiet.
    """
    counted = Progress(description, total, initial, unit, bar)
    with _lines.about(counted) if _bars_off() and not is_quiet() and is_main_process() else nullcontext():
        yield counted


class Progress:
    """Progress of a piece of work. `note` is additional text, such as the loss."""

    def __init__(self, description: str, total: int | None, initial: int = 0, unit: str = "", bar: Any = None) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.initial = self.done = initial
        self.note = ""
        self._bar, self._started = bar, _lines.clock()

    def update(self) -> None:
        """Advance by one."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()

    def tell(self, note: str) -> None:
        """Replace the note."""
        self.note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)

    def line(self) -> str:
        """Return `training: step 120 of 822 (14 %), loss 0.4312, 55.0 examples/s, about 6 min 40 s left`."""
        seconds, done = _lines.clock() - self._started, self.done - self.initial
        facts = [self.note] if self.note else []
        if self.total:
            facts.insert(0, f"{self.unit} {self.done} of {self.total} ({self.done / self.total:.0%})".lstrip())
        if self.total and done:
            facts.append(f"about {_duration(seconds / done * (self.total - self.done))} left")
        else:
            facts.append(f"{_duration(seconds)} so far")
        return f"{self.description}: {', '.join(facts)}"


class _Lines:
    """Logs progress from a thread: a single step, download or fit may take longer than LINE_SECONDS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._pieces: list[Progress] = []  # outermost first
        self._due = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def about(self, piece: Progress) -> Iterator[None]:
        """Report `piece` until the end of the block, except while a nested piece runs."""
        self._pieces.append(piece)
        if self._thread is None:
            self._due = self.clock() + LINE_SECONDS
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._watch, args=(self._ended,), name="progress", daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._pieces.remove(piece)
            if not self._pieces:
                self._ended.set()
                self._thread = None

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(1):
            self.tick()

    def tick(self) -> None:
        """Log a line if one is due."""
        now, pieces = self.clock(), self._pieces[-1:]
        if pieces and now >= self._due:
            self._due = now + LINE_SECONDS
            log.info("%s", pieces[0].line())


_lines = _Lines()


def _duration(seconds: float) -> str:
    """Format a duration in seconds.

    >>> _duration(9.6), _duration(100), _duration(7300)
    ('10 s', '1 min 40 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _bars_off() -> bool:
    # Notebooks get a text bar: tqdm's widgets need ipywidgets, and warn if it is missing.
    return not (sys.stderr.isatty() or in_notebook()) or is_quiet() or not is_main_process()
