"""An in-memory cache of opened images: decoding a JPEG may take longer than all later steps."""

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
"""Limit for all splits of a run, per process, at 3 bytes per pixel; other images are opened again each time."""

SHARE = 0.75
"""Fraction of the remaining bytes for the next split, so that train, which comes first, does not take them all."""


class ImageStore:
    """The images of a split, as returned by `open_image`, cached up to `budget` bytes.

    Thread-safe. If not all images fit, it is random which ones are cached, but not what is returned.
    """

    def __init__(
        self, images: Sequence[Any], places: Sequence[str], budget: int = 0, brightness: Brightness = UNKNOWN
    ) -> None:
        """`images`, `places` and `brightness` are arguments of `open_image`; `brightness` may be set later.

        Until then, images that need it are not cached.
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
        """Return an image as uint8 [height, width, 3], read-only. Raises DataError, StorageError."""
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
        """Return a store for the rows `indices`, whose images are `images`, including cached images."""
        chosen = ImageStore(images, [self.places[index] for index in indices], self.budget, self.brightness)
        chosen._kept = {new: self._kept[old] for new, old in enumerate(indices) if old in self._kept}
        chosen.nbytes = sum(array.nbytes for array in chosen._kept.values())
        return chosen


class ImageBudget:
    """Distributes `CACHE_BYTES` among stores. Deleted stores (of a stream's past buffers) free their bytes."""

    def __init__(self) -> None:
        self._stores: weakref.WeakSet[ImageStore] = weakref.WeakSet()

    def share(self) -> int:
        """Return the number of bytes that a new store may cache."""
        return max(0, int(SHARE * (CACHE_BYTES - sum(store.nbytes for store in self._stores))))

    def count(self, store: ImageStore) -> None:
        """Count the bytes of a store, which will cache no further images."""
        store.budget = store.nbytes
        self._stores.add(store)
