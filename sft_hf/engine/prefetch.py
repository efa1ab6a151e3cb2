"""Prepare the next step's batches in a thread while this step computes on a GPU.

A batch is a function of the plan and its own seeds, not of the state of any generator, so it does not depend on when it
is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


def pays(device: torch.device) -> bool:
    """Return whether prefetching helps on a device: a CPU has no core to spare while it computes a step."""
    return device.type != "cpu"


class OneAhead(Generic[T]):
    """Computes one result ahead of time in a thread. Its errors are raised by `take`."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._key: Hashable = None
        self._future: Future[T] | None = None

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result started under `key`, or compute it now."""
        future, ready = self._future, self._key == key
        self._future = None
        return future.result() if future is not None and ready else make()

    def start(self, key: Hashable, make: Callable[[], T]) -> None:
        """Start computing the result that `take` is expected to ask for next."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        if self._future is not None:
            if self._key == key:
                return
            self._future.cancel()
        self._key, self._future = key, self._pool.submit(make)

    def close(self) -> None:
        """Discard the pending result, and wait for the thread to end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._future = None
