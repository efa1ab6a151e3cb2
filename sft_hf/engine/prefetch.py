"""The next step's batches, made in a thread while this step computes on a GPU.

What a batch holds is a function of the plan and of seeds of its own, not of any generator's state, so that it is the
same whenever it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


def pays(device: torch.device) -> bool:
    """Whether batches are made ahead for a device: a CPU has no core to spare while it computes a step."""
    return device.type != "cpu"


class OneAhead(Generic[T]):
    """Makes one thing ahead of time. Errors of making it are raised where it is taken."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._key: Hashable = None
        self._future: Future[T] | None = None

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was started under `key`, or make it now."""
        future, ready = self._future, self._key == key
        self._future = None
        return future.result() if future is not None and ready else make()

    def start(self, key: Hashable, make: Callable[[], T]) -> None:
        """Begin to make what is taken next, if all goes as planned."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        if self._future is not None:
            if self._key == key:
                return
            self._future.cancel()
        self._key, self._future = key, self._pool.submit(make)

    def close(self) -> None:
        """Forget what was started, and wait for the thread's end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._future = None
