"""Opened images, kept in memory as far as a budget goes: decoding a JPEG may take longer than all that follows."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sft_hf.data.images import open_image
from sft_hf.data.media import content_digest
from sft_hf.data.row_cache import RowCache

CACHE_BYTES = 2**30
"""Of all splits of a run together, in each process, as 3 bytes a pixel; what is beyond is opened anew each time."""

SHARE = 0.75
"""Of the bytes that are left, for the next split: train, which comes first, may not take them all."""


class ImageStore:
    """The images of a split, as `open_image` returns them, with the bytes that it may keep of them.

    Threads may open images at the same time. Which are kept, if not all, is chance; what is returned never is.
    """

    def __init__(
        self, images: Sequence[Any], places: Sequence[str], budget: int = 0, disk: RowCache | None = None
    ) -> None:
        """`images` and `places` are what `open_image` takes; `disk` has the pixels that earlier runs decoded."""
        self.images, self.places, self.budget, self.disk = images, places, budget, disk
        self.nbytes = 0
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.places)

    def holds(self, index: int) -> bool:
        """Whether an image is in memory."""
        return index in self._kept

    def pixels(self, index: int) -> np.ndarray:
        """Return an image as uint8 [height, width, 3], not to be written to. Raises DataError, StorageError."""
        kept = self._kept.get(index)
        return self._read(index) if kept is None else kept

    def open(self, index: int) -> Image.Image:
        """Return an image. Raises DataError, StorageError."""
        if index in self._kept or self.disk is not None or self.nbytes < self.budget:
            return Image.fromarray(self.pixels(index))
        return open_image(self.images[index], self.places[index])

    def _read(self, index: int) -> np.ndarray:
        pixels = self._from_disk(index)
        with self._lock:
            keep = index not in self._kept and self.nbytes + pixels.nbytes <= self.budget
            self.nbytes += pixels.nbytes if keep else 0
        if keep:
            self._kept[index] = pixels
        return pixels

    def _from_disk(self, index: int) -> np.ndarray:
        image, disk = self.images[index], self.disk
        name = None if disk is None else content_digest(image)
        found = None if disk is None or name is None else disk.find(name)
        if found is not None:
            return found[0]
        pixels = np.asarray(open_image(image, self.places[index]))
        if disk is not None and name is not None:
            disk.keep(name, [pixels])
        return pixels

    def only(self, indices: Sequence[int], images: Sequence[Any]) -> ImageStore:
        """Return the store of the rows `indices`, whose images are `images`, with what is in memory of them."""
        chosen = ImageStore(images, [self.places[index] for index in indices], self.budget, self.disk)
        chosen._kept = {new: self._kept[old] for new, old in enumerate(indices) if old in self._kept}
        chosen.nbytes = sum(array.nbytes for array in chosen._kept.values())
        return chosen


class ImageBudget:
    """Deals `CACHE_BYTES` out to stores. One that is gone, of a past buffer of a stream, leaves its bytes to others."""

    def __init__(self) -> None:
        self._stores: weakref.WeakSet[ImageStore] = weakref.WeakSet()

    def share(self) -> int:
        """Bytes that a new store may keep."""
        return max(0, int(SHARE * (CACHE_BYTES - sum(store.nbytes for store in self._stores))))

    def count(self, store: ImageStore) -> None:
        """Let the bytes of a store count, which will open no more images that it does not hold."""
        store.budget = store.nbytes
        self._stores.add(store)
