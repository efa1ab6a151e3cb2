"""Opening untrusted images as upright RGB, or raising a DataError with the file and the reason.

Pillow only warns about images that would fill the memory, runs programs for some formats, and raises many kinds of
exceptions. Here the header is checked before decoding, only pixel formats are tried, and warnings are suppressed.

Colours match `transformers.pipeline`, which calls `convert("RGB")`: transparency is dropped, not blended. Grey images
of more than 8 bits, which that would turn white, are scaled (see `sft_hf.tasks.image.brightness`).
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from sft_hf.core.errors import DataError, StorageError
from sft_hf.core.filesystem import STORAGE_ERRNOS, no_such_file
from sft_hf.data.loading.file_paths import URL
from sft_hf.data.loading.image_formats import HEAD, formats_for, not_a_picture
from sft_hf.tasks.image.brightness import UNKNOWN, Brightness, colour_depth, depth_of, narrowed

MAX_PIXELS = 64_000_000
"""The largest image that is decoded, in pixels (192 MB as RGB)."""

MAX_ASPECT = 200
"""Maximum ratio of the longer side to the shorter: resizing the shorter side makes such an image huge."""

DEPTH = "sft_hf_depth"
"""Key of `Image.info` under which `open_image` stores the `brightness.Depth` of an image of more than 8 bits."""

_BASE64 = re.compile("[A-Za-z0-9+/=]{200}")

_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)

T = TypeVar("T")
S = TypeVar("S")


def thumbnail(image: Image.Image, pixels: int) -> bytes:
    """Return the image as JPEG with at most `pixels` on the longer side."""
    small = image.copy()
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def open_image(value: Any, place: str = "", brightness: Brightness = UNKNOWN) -> Image.Image:
    """Return an image as 8-bit RGB, with its EXIF orientation applied; the first frame if there are several.

    Args:
        value: a path, the bytes of a file, a Pillow image, or an undecoded Image of `datasets`:
            {"bytes": ..., "path": ...}.
        place: the location of the value, for messages ("train.csv row 3").
        brightness: the scales of the data set, for images of more than 8 bits.

    Raises:
        DataError: it is missing, not an image, corrupt, truncated, or larger than `MAX_PIXELS`.
        StorageError: the disk fails.
    """
    _ignore_pillow_warnings()
    content, name = _content(value)
    where = ": ".join(part for part in (place, name) if part) or "image"
    if content is NotImplemented:
        raise DataError(f"{where}: {str(value)[:40]!r} ({type(value).__name__}) is neither a path nor an image file")
    if content is None:
        raise DataError(f"{where}: there is no image; fill it in or remove the row")
    if isinstance(content, str) and URL.match(content):
        raise DataError(f"{where}: is a URL; URLs are not downloaded; download the image and give its path")
    try:
        if isinstance(content, Image.Image):
            return _upright_rgb(content, where, brightness)
        if isinstance(content, bytes) and not content:
            raise DataError(f"{where}: is empty")
        if not isinstance(content, bytes) and os.path.exists(content) and not os.path.isfile(content):
            # Opening a pipe would block forever.
            raise DataError(f"{where}: is a folder or device, not a file")
        with _file(content) as file:
            head = file.read(HEAD)
            file.seek(0)
            with Image.open(file, formats=formats_for(name, head)) as image:
                return _upright_rgb(image, where, brightness)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error, ...
        raise _explained(error, content, where) from error


def _file(content: Any) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")


def map_ahead(function: Callable[[T], S], items: Iterable[T], workers: int) -> Iterator[S]:
    """Yield `function(item)` in order, computed ahead in threads: decoding releases Python's global lock.

    At most `2 * workers` results are pending, which bounds the memory.
    """
    if workers < 2:
        yield from map(function, items)
        return
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[S]] = deque(pool.submit(function, item) for item in islice(rest, 2 * workers))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(rest, 1))
        finally:
            for future in pending:
                future.cancel()


# --- values and errors ----------------------------------------------------------------------------------------


def _content(value: Any) -> tuple[Any, str]:
    """Return the object to open (None if there is none) and its name for messages."""
    if isinstance(value, dict):
        held, path = value.get("bytes"), value.get("path")
        return (path or None) if held is None else held, str(path or "")
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return (text if str(text).strip() else None), str(text)[:300]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value), ""
    if value is None or isinstance(value, (bytes, Image.Image)):
        return value, ""
    return NotImplemented, ""


def _ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings; relevant ones are errors here. `catch_warnings` is not thread-safe."""
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


def _explained(error: Exception, content: Any, where: str) -> DataError | StorageError:
    if isinstance(error, OSError) and isinstance(content, str) and _BASE64.fullmatch(content[-200:]):
        return DataError(f"{where[:80]}...: is base64 text, not a path; decode it into a file")
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
        return StorageError(f"{where}: cannot be read: {error.strerror}")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where}: {no_such_file(content)}")
    if isinstance(error, OSError) and error.errno:
        return DataError(f"{where}: cannot be read: {error.strerror}")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{where}: {_too_large()}")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        with _file(content) as file:
            head = file.read(HEAD)
        return DataError(f"{where}: {not_a_picture(where, head) if head else 'is empty'}")
    if "truncated" in reason.lower():
        return DataError(f"{where}: is truncated (the end of the file is missing)")
    return DataError(f"{where}: is damaged: {reason}")


def _too_large(size: tuple[int, int] | None = None) -> str:
    held = f"has {size[0]} x {size[1]} pixels" if size else "has too many pixels"
    return f"{held}; more than {MAX_PIXELS // 1_000_000} million are not decoded: scale it down"


# --- from any mode to RGB ------------------------------------------------------------------------------------


def _upright_rgb(image: Image.Image, where: str, brightness: Brightness) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {_too_large(image.size)}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{where}: has {width} x {height} pixels; no side may be {MAX_ASPECT} times the other: crop it")
    colour = colour_depth(image)
    image.load()
    found = _rgb(_upright(image), where, brightness)
    if colour is not None:
        found.info[DEPTH] = replace(colour, high=float(np.max(np.asarray(found))))
    return found


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # corrupt EXIF data, but intact pixels
        return image


def _rgb(image: Image.Image, where: str, brightness: Brightness) -> Image.Image:
    depth = depth_of(image, where)
    if depth is not None:
        grey = narrowed(image, depth, brightness).convert("RGB")
        grey.info[DEPTH] = depth
        return grey
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    if image.mode == "LAB":
        return _from_lab(image)
    return image.convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    """Convert a CIE L*a*b* image to RGB, which Pillow supports only through colour profiles."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    assert found is not None
    return found
