"""Opened images, kept in memory as far as a budget goes: decoding a JPEG may take longer than all that follows."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sft_hf.tasks.image.brightness import COLOUR, UNKNOWN, Brightness, Depth
from sft_hf.tasks.image.images import DEPTH, open_image

CACHE_BYTES = 2**30
"""Of all splits of a run together, in each process, as 3 bytes a pixel; what is beyond is opened again each time."""

SHARE = 0.75
"""Of the bytes that are left, for the next split: train, which comes first, may not take them all."""


class ImageStore:
    """The images of a split, as `open_image` returns them, with the bytes that it may keep of them.

    Threads may open images at the same time. Which are kept, if not all, is chance; what is returned never is.
    """

    def __init__(
        self, images: Sequence[Any], places: Sequence[str], budget: int = 0, brightness: Brightness = UNKNOWN
    ) -> None:
        """`images`, `places` and `brightness` are what `open_image` takes; the last may be set later, once it is known.

        Until then pictures that need it are not kept.
        """
        self.images, self.places, self.budget, self.brightness = images, places, budget, brightness
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
        return np.asarray(self.open(index)) if kept is None else kept

    def open(self, index: int) -> Image.Image:
        """Return an image. Raises DataError, StorageError."""
        kept = self._kept.get(index)
        if kept is not None:
            return Image.fromarray(kept)
        brightness = self.brightness
        image = open_image(self.images[index], self.places[index], brightness)
        size = 3 * image.width * image.height
        depth: Depth | None = image.info.get(DEPTH)
        final = depth is None or depth.kind == COLOUR or depth.kind in brightness.scales
        with self._lock:
            keep = final and index not in self._kept and self.nbytes + size <= self.budget
            self.nbytes += size if keep else 0
        if keep:
            self._kept[index] = np.asarray(image)
        return image

    def only(self, indices: Sequence[int], images: Sequence[Any]) -> ImageStore:
        """Return the store of the rows `indices`, whose images are `images`, with what is in memory of them."""
        chosen = ImageStore(images, [self.places[index] for index in indices], self.budget, self.brightness)
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
