"""Tensors of rows on disk: written atomically in shards, verified before use, memory-mapped.

    ~/.cache/sft-hf/<kind>/<key>/<shard>/index.json    position of each row, dtypes, sizes and SHA-256 of the files
    ~/.cache/sft-hf/<kind>/<key>/<shard>/<n>.npy       the n-th tensor of all rows, concatenated and flattened

The key identifies what made the tensors (weights, tokenizer, precision, versions), a row's name identifies its input;
other runs find them again if they have some of the same rows. Everything may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_hf.core.filesystem import committed_folder, sha256_of
from sft_hf.core.sources.wheels import cache_root

log = logging.getLogger("sft_hf")

SHARD_BYTES = 1 << 26  # of tensors in memory before they are written
ABANDONED_SECONDS = 3600.0  # after this time, an unfinished shard is considered abandoned
INDEX = "index.json"


@dataclass(frozen=True)
class _Place:
    shard: str
    starts: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


class RowStore:
    """The tensors that one preparation made from rows."""

    def __init__(self, kind: str, key: str, limit: int) -> None:
        """`limit`: maximum total bytes of all stores of a kind."""
        self.root = cache_root() / kind
        self.folder, self.limit = self.root / key, limit
        self._places: dict[str, _Place] = {}
        self._files: dict[str, list[tuple[np.ndarray, torch.dtype]]] = {}
        self._waiting: dict[str, list[Tensor]] = {}
        self._waiting_bytes = 0
        self._written: set[str] = set()

    def __contains__(self, row: str) -> bool:
        return row in self._places or row in self._waiting

    def is_written(self, row: str) -> bool:
        """Whether `read` can return a row; False while it is waiting to be written."""
        return row in self._places

    def open(self) -> None:
        """Index the stored rows; shards that fail verification are deleted. Raises OSError."""
        for path in sorted(self.folder.glob("[0-9a-f]*")) if self.folder.is_dir() else []:
            if path.name in self._files:
                continue
            try:
                self._open_shard(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: corrupt; recomputing: %s", path, error)
                shutil.rmtree(path, ignore_errors=True)

    def _open_shard(self, path: Path) -> None:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        files = []
        for number, file in enumerate(index["files"]):
            if sha256_of(path / f"{number}.npy") != file["sha256"]:
                raise ValueError(f"{number}.npy does not match its SHA-256")
            array = np.load(path / f"{number}.npy", mmap_mode="r", allow_pickle=False)
            dtype = getattr(torch, str(file["dtype"]), None)
            if not isinstance(dtype, torch.dtype) or dtype.itemsize != array.itemsize or array.ndim != 1:
                raise ValueError(f"{number}.npy is not a flat array of {file['dtype']}")
            files.append((array, dtype))
        places = {}
        for row, tensors in index["rows"].items():
            starts = tuple(int(start) for start, _ in tensors)
            shapes = tuple(tuple(int(size) for size in shape) for _, shape in tensors)
            if len(tensors) != len(files) or any(
                start < 0 or start + math.prod(shape) > len(array)
                for start, shape, (array, _) in zip(starts, shapes, files, strict=True)
            ):
                raise ValueError(f"row {row[:8]} lies outside its files")
            places[str(row)] = _Place(path.name, starts, shapes)
        self._files[path.name] = files
        self._places |= places
        os.utime(path)  # marks it as recently used, for `make_room`

    def read(self, row: str) -> list[Tensor]:
        """Return copies of the tensors of a row. Raises KeyError if it is not on disk."""
        place = self._places[row]
        found = []
        for start, shape, (array, dtype) in zip(place.starts, place.shapes, self._files[place.shard], strict=True):
            values = torch.from_numpy(np.array(array[start : start + math.prod(shape)]))
            found.append(values.view(dtype).view(shape))
        return found

    def add(self, row: str, tensors: Sequence[Tensor]) -> None:
        """Add the tensors of a row, to be written with the next shard. Raises StorageError."""
        kept = [tensor.detach().cpu().contiguous().clone() for tensor in tensors]
        self._waiting[row] = kept
        self._waiting_bytes += sum(tensor.nbytes for tensor in kept)
        if self._waiting_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write pending tensors. Raises StorageError."""
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        # The name includes the process id, so that two processes that write the same rows do not collide.
        name = hashlib.sha256("".join([*waiting, str(os.getpid())]).encode()).hexdigest()[:24]
        rows: dict[str, list[Any]] = {row: [] for row in waiting}
        files = []
        self._written.add(name)
        with committed_folder(self.folder / name) as aside:
            for number, column in enumerate(zip(*waiting.values(), strict=True)):
                start = 0
                for row, tensor in zip(waiting, column, strict=True):
                    rows[row].append([start, list(tensor.shape)])
                    start += tensor.numel()
                flat = torch.cat([tensor.reshape(-1) for tensor in column])
                np.save(aside / f"{number}.npy", _plain(flat).numpy(), allow_pickle=False)
                dtype = str(flat.dtype).removeprefix("torch.")
                files.append({"dtype": dtype, "sha256": sha256_of(aside / f"{number}.npy")})
            (aside / INDEX).write_text(json.dumps({"rows": rows, "files": files}), encoding="utf-8")

    def size(self, rows: Iterable[str] | None = None) -> int:
        """Return the size in bytes of these rows' tensors; None: of all open rows."""
        total = 0
        for row in self._places if rows is None else rows:
            place = self._places[row]
            sizes = zip(place.shapes, self._files[place.shard], strict=True)
            total += sum(math.prod(shape) * array.itemsize for shape, (array, _) in sizes)
        return total

    def make_room(self, size: int) -> None:
        """Delete the least recently used shards until `size` more bytes fit below the limit.

        Shards that this store has opened or written are kept, so the limit may be exceeded.
        """
        own = {self.folder / name for name in (*self._files, *self._written)}
        shards = [found for path in self.root.glob("*/*") if (found := _age_and_size(path))]
        total = sum(size for _, _, size in shards)
        for _, path, taken in sorted(shards):
            if total + size <= self.limit:
                break
            if path not in own:
                shutil.rmtree(path, ignore_errors=True)
                total -= taken


def _age_and_size(shard: Path) -> tuple[float, Path, int] | None:
    """Return the time of last use, path and bytes of a shard; None if it is being written or was deleted."""
    try:
        used = shard.stat().st_mtime
        if shard.name.startswith(".") and time.time() - used < ABANDONED_SECONDS:
            return None
        return used, shard, sum(file.stat().st_size for file in shard.iterdir())
    except OSError:
        return None


def _plain(flat: Tensor) -> Tensor:
    """Return the same bits as a dtype that NumPy supports."""
    return flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
