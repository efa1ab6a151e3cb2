"""Reading images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.columns import Column
from sft_hf.data.examples import Examples
from sft_hf.data.loading.image_folders import find_images
from sft_hf.data.loading.media import file_name
from sft_hf.data.new_inputs.media import input_chunks, refuse_literal
from sft_hf.tasks.base import Preview, Reader
from sft_hf.tasks.image.brightness import UNKNOWN, Brightness

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.data.new_inputs.inputs import Input
    from sft_hf.tasks.image.image_store import ImageStore

PREVIEW_PIXELS = 240  # the longer side of a preview


class ImageRows(Sequence[dict[str, Any]]):
    """Rows with the location of their images, which `Task.collate` opens batch by batch."""

    def __init__(
        self,
        store: ImageStore,
        labels: Sequence[Any] | None,
        view: str = "eval",
        seeds: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        self.store, self.labels, self.view, self.seeds = store, labels, view, seeds

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        row: dict[str, Any] = {"view": self.view}
        if self.view != "blank":
            row |= {"store": self.store, "index": int(index)}
        if self.seeds is not None:
            row["seed"] = self.seeds[index]
        if self.labels is not None:
            row["labels"] = self.labels[index]
        return row


class ImageReader(Reader):
    """Turns image files into rows with their location."""

    brightness: Brightness
    """The scale of images of more than 8 bits, learned from the training rows."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        self.brightness = UNKNOWN

    def columns(self) -> dict[str, str]:
        """See `Reader.columns`."""
        data = self.data
        return {"data.image_column": data.image_column, **data.label_columns}

    def preview(self, split: Dataset, indices: Sequence[int]) -> list[Preview]:
        """See `Reader.preview`: JPEG with at most `PREVIEW_PIXELS` per side."""
        from sft_hf.tasks.image.images import open_image, thumbnail

        images = Column(split, self.data.image_column)
        return [
            Preview(
                file_name(images[index]),
                thumbnail(open_image(images[index], "", self.brightness), PREVIEW_PIXELS),
                "image/jpeg",
            )
            for index in indices
        ]

    def read_inputs(self, inputs: Sequence[Any], literal: bool = False) -> Iterable[list[Input]]:
        """See `Reader.read_inputs`: image files, folders, globs, and tables with the image column, but no URLs."""
        refuse_literal(literal, "images")
        return input_chunks(inputs, self.data, self.data.image_column, _images_of, ("image",))

    def prepare_inputs(self, rows: list[dict[str, Any]]) -> Examples:
        """See `Reader.prepare_inputs`."""
        from sft_hf.tasks.image.image_store import ImageStore

        store = ImageStore([row[self.data.image_column] for row in rows], [""] * len(rows), brightness=self.brightness)
        return Examples(ImageRows(store, None), np.ones(len(rows), dtype=np.int64), np.arange(len(rows)), [])


def _images_of(folder: Path) -> list[Path]:
    found, _ = find_images(folder)
    if not found:
        raise DataError(f"{folder}: no images in this folder")
    return found
