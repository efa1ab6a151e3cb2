"""SIGTERM and SIGINT (on Windows also Ctrl-Break): recorded immediately, acted on at the next safe point.

A handler that raises could interrupt anything, including a save. This one only sets a flag, which long operations
check: preparation and evaluation with `poll`, the training loop with `requested`, so that it can save first. A second
SIGINT ends the process immediately.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sft_hf.core.errors import Terminated

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)

_received: signal.Signals | None = None


@contextmanager
def listening() -> Iterator[None]:
    """Record signals instead of dying until the end of the block; does nothing outside the main thread.

    If SIGINT ends the block with Terminated, KeyboardInterrupt is raised from it, so that a loop of runs that continues
    after errors (a sweep) stops, too.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received = None
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    except Terminated as error:
        if _received != signal.SIGINT:
            raise
        raise KeyboardInterrupt(str(error)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


def _note(number: int, frame: Any) -> None:
    global _received
    if _received is not None and number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)  # not os.kill: on Windows it exits with code 2 (UserError)
    _received = signal.Signals(number)
    # Not through logging: its lock may have been held when the signal arrived.
    os.write(2, f"\n{_received.name}: stopping at the next safe point (SIGINT again: immediately)\n".encode())


def requested() -> bool:
    """Whether the process was asked to stop."""
    return _received is not None


def poll() -> None:
    """Raise Terminated if the process was asked to stop."""
    if _received is not None:
        raise Terminated(f"stopped by {_received.name}")


def end_with_launcher() -> None:
    """Request SIGTERM for this process when its parent dies (Linux).

    `accelerate launch` does not forward SIGTERM to a single child process: stopping it would leave the training
    running. Only for processes started by a launcher: a shell may end before its jobs.
    """
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGTERM), 0, 0, 0)
