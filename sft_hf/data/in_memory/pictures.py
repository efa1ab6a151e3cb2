"""Images in memory as table cells: a path, or the bytes of a file with the same pixels."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any

import numpy as np

from sft_hf.core.errors import DataError, UserError
from sft_hf.data.in_memory.arrays import plain
from sft_hf.data.labels.values import is_missing
from sft_hf.data.loading.file_paths import URL

PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
"""Pillow modes that PNG stores losslessly; other images are written as TIFF."""


def file_cell(value: Any) -> dict[str, Any] | None:
    """Return the cell of a file given as a path, bytes, or {"bytes": ..., "path": ...}; None for anything else."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        path = text if URL.match(str(text)) else os.path.abspath(os.path.expanduser(text))
        return {"bytes": None, "path": str(path)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, dict) and value and set(value) <= {"bytes", "path"}:
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return None


def picture_cell(value: Any, where: str) -> dict[str, Any] | None:
    """Return an image as {"bytes": ..., "path": ...}; None if it is missing.

    Args:
        value: a path, the bytes of a file, {"bytes": ..., "path": ...}, a Pillow image, or an array: uint8 or bool
            [height, width] or [height, width, 1, 3 or 4 channels], or uint16 [height, width].
        where: the row and the column, for messages.

    Raises DataError for anything else, UserError if Pillow is not installed.
    """
    if is_missing(value) or type(value).__name__ == "NAType":
        return None
    if (cell := file_cell(value)) is not None:
        return cell
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"images need {error.name}: pip install 'sft-hf[image]'") from None

    if not isinstance(value, Image.Image):
        value = Image.fromarray(_pixels(value, where))
    path = getattr(value, "filename", None)
    return {"bytes": _encoded(value, where), "path": str(path) if path else None}


def _pixels(value: Any, where: str) -> np.ndarray:
    """Return an array in a format that Pillow accepts."""
    if not hasattr(value, "__array__"):
        held = "a list" if isinstance(plain(value), list) else f"a {type(value).__name__}"
        raise DataError(
            f"{where} holds {held}, {value!r:.40}; give a path, a Pillow image, a uint8 array [height, width, 3], or "
            "the bytes of a file"
        )
    array = np.asarray(value)
    shape = f"{array.dtype} array {list(array.shape)}"
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{where} holds a {shape}; an image is [height, width] or [height, width, channels]")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        hint = "; move the channels last: array.transpose(1, 2, 0)" if array.shape[0] in (1, 3, 4) else ""
        raise DataError(f"{where} holds a {shape}; an image has 1, 3 or 4 channels, in the last dimension{hint}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        hint = "; if its values are 0 to 1: (array * 255).astype('uint8')" if array.dtype.kind == "f" else ""
        raise DataError(f"{where} holds a {shape}; pixels are uint8, 0 to 255{hint}")
    return np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _encoded(image: Any, where: str) -> bytes:
    """Return the bytes of a file with the same pixels, upright (rotated as its EXIF data say)."""
    from PIL import ImageOps

    buffer = io.BytesIO()
    try:
        image.load()
        with suppress(Exception):  # corrupt EXIF data; the pixels are intact
            image = ImageOps.exif_transpose(image)
        if image.mode in PNG_MODES:
            image.save(buffer, "PNG", compress_level=1)
        else:
            image = image if image.mode in ("F", "I", "CMYK", "YCbCr", "LAB") else image.convert("RGB")
            image.save(buffer, "TIFF")
    except (OSError, ValueError, SyntaxError) as error:  # a corrupt file that could be opened
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where} holds an image that cannot be read: {reason}") from error
    return buffer.getvalue()
