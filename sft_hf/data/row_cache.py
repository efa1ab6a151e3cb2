"""The disk cache of prepared rows (tokens, speech features), shared by runs.

Entries are identified by their inputs and by the preparation that made them, so that results are bit-identical with
and without the cache. A problem with the cache never stops a run: it is reported once, and rows are recomputed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from sft_hf.core.console import is_main_process
from sft_hf.core.errors import StorageError
from sft_hf.core.filesystem import free_bytes
from sft_hf.data.row_store import RowStore

log = logging.getLogger("sft_hf")

FORMAT = 1  # to be incremented when the prepared arrays change
WORTH_BYTES = 1 << 20  # smaller results are computed faster than they are found


def qualified_name(thing: Any) -> str:
    """Return the qualified class name of an object; for code of a Hub model, it contains the commit."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


class RowCache:
    """The arrays that one preparation makes from rows; written by the main process, read by all processes."""

    def __init__(self, kind: str, made_by: Mapping[str, Any], packages: Sequence[str], gigabytes: float) -> None:
        """Open or create the cache.

        Args:
            kind: the kind of content, and the name of its folder below ~/.cache/sft-hf.
            made_by: everything that the arrays depend on besides the rows, JSON-serializable.
            packages: distributions whose versions also matter.
            gigabytes: maximum total disk size of all caches of this kind.
        """
        versions = {name: metadata.version(name) for name in packages}
        what = {"format": FORMAT, "cpu": torch.backends.cpu.get_cpu_capability(), "versions": versions, **made_by}
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        store = RowStore(kind, key, int(gigabytes * 1e9))
        self._store: RowStore | None = store  # None: disabled after an error
        self._try(store.open)
        self._room = min(store.limit - store.size(), free_bytes(store.root) // 2)
        self._new_bytes = 0

    def find(self, row: str) -> list[np.ndarray] | None:
        """Return the arrays of a row, given its key; None if they are not on disk."""
        if self._store is None or not self._store.is_written(row):
            return None
        return [tensor.numpy() for tensor in self._store.read(row)]

    def keep(self, row: str, arrays: Sequence[np.ndarray]) -> None:
        """Add the arrays of a row, to be written now or by `flush`, if there is room for them."""
        size = sum(array.nbytes for array in arrays)
        store = self._store
        if store is None or row in store or not is_main_process() or size > self._room:
            return
        self._room -= size
        self._new_bytes += size
        self._try(lambda: store.add(row, [torch.from_numpy(array) for array in arrays]))

    def flush(self) -> None:
        """Write pending arrays, if worthwhile, and use them from now on; the least recently used are evicted."""
        store = self._store
        if store is not None and self._new_bytes >= WORTH_BYTES:
            self._try(store.flush)
            self._try(store.open)
            store.make_room(0)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (StorageError, OSError) as error:
            log.warning("row cache disabled: %s (set row_cache_gb: 0 to turn it off)", error)
            self._store = None
