"""Image formats: those that Pillow recognizes by content, except formats that run programs or have no pixels."""

from __future__ import annotations

import os
import stat
import threading
from functools import lru_cache
from pathlib import Path

from PIL import Image

HEAD = 64  # bytes from which a format is recognized

_WITHOUT_PIXELS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC", "IPTC"})
"""Formats that Pillow passes to another program (PostScript), or of which it reads only the header."""

_ENDINGS = {".imt": "IMT", ".spi": "SPIDER", ".spider": "SPIDER"}  # extensions unknown to Pillow

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the picture itself; run `git lfs pull`"),
    (b"%PDF", "is a PDF document; save its pages as PNG or JPEG"),
    (b"%!PS", "is a PostScript drawing, which would be run as a program; convert it to PNG"),
    (b"\xc5\xd0\xd3\xc6", "is a PostScript drawing, which would be run as a program; convert it to PNG"),
    (b"\x00\x05\x16\x07", "is a macOS resource fork (AppleDouble) and not the picture itself; remove it"),
    (b"\xd7\xcd\xc6\x9a", "is a Windows metafile (WMF), which is not read; convert it to PNG"),
    (b"\x00\x00\x01\xba", "is an MPEG video; save frames of it as PNG or JPEG"),
    (b"\x00\x00\x01\xb3", "is an MPEG video; save frames of it as PNG or JPEG"),
    (b"PK\x03\x04", "is a zip archive; give the archive as data.name, or unpack it"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
)

_lock = threading.Lock()


@lru_cache
def all_formats() -> tuple[str, ...]:
    """Return the names of the supported formats, in the order in which Pillow tries them."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _WITHOUT_PIXELS and name != "HEIF")


@lru_cache
def formats_with_magic() -> tuple[str, ...]:
    """Return the formats recognized by the first bytes of a file; others are only tried for their extensions."""
    return tuple(name for name in all_formats() if Image.OPEN[name][1] is not None)


@lru_cache
def _without_magic() -> frozenset[str]:
    return frozenset(all_formats()) - frozenset(formats_with_magic())


def formats_for(name: str, head: bytes) -> tuple[str, ...]:
    """Return the formats to try for a file name ("" for bytes without one) and the first bytes of the file."""
    if is_heif(head):
        return ("HEIF",) if _add_heif() else ()
    ending = os.path.splitext(name)[1].lower()
    own = _ENDINGS.get(ending) or Image.registered_extensions().get(ending)
    return (*formats_with_magic(), own) if own in _without_magic() else formats_with_magic()


def is_heif(head: bytes) -> bool:
    """Whether a file starts like HEIC or HEIF (but not AVIF)."""
    brands = (head[8:12], *(head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4], "big"), len(head)), 4)))
    return head[4:8] == b"ftyp" and b"avif" not in brands and b"avis" not in brands and head[8:12] in _HEIF_BRANDS


def is_picture(path: Path) -> bool:
    """Whether a file starts like an image, regardless of its extension; its pixels are not read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block forever
            return False
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if is_heif(head):
                return True
            likely = [name for name in formats_with_magic() if Image.OPEN[name][1](head[:16])]  # type: ignore[misc]
            if not likely:
                return False
            file.seek(0)
            with Image.open(file, formats=likely):
                return True
    except Exception:  # decoders raise many types of exceptions
        return False


def not_a_picture(name: str, head: bytes) -> str:
    """Return why a file that starts with `head` cannot be read as an image, and what to do."""
    if is_heif(head) and not _add_heif():
        return "is a HEIC picture, which needs pillow-heif: pip install 'sft-hf[heic]'"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if (
        start.startswith(b"<svg")
        or name.lower().endswith((".svg", ".svgz"))
        or (b"<?xml" in start and b"<svg" in start)
    ):
        return "is an SVG drawing, which has no pixels; convert it to PNG"
    for magic, reason in _OTHERS:
        if head.startswith(magic):
            return reason
    if start.startswith((b"<!doctype", b"<html")):
        return "is a web page and not a picture; download the picture itself"
    if head[4:8] == b"ftyp" or head.startswith((b"\x1aE\xdf\xa3", b"RIFF")):
        return "is a video or recording and not a picture; save frames of it as PNG or JPEG"
    if head.isascii() and head.decode("ascii").isprintable() and b"/" in head:
        return f"holds the text {head.decode('ascii')!r}, perhaps a link that was copied as text; restore the picture"
    return "is not a picture that can be read (JPEG, PNG, WEBP, TIFF, GIF, BMP, AVIF, HEIC, JPEG 2000, ...)"


def _add_heif() -> bool:
    """Register HEIC with Pillow if pillow-heif is installed."""
    with _lock:
        if "HEIF" not in Image.OPEN:
            try:
                import pillow_heif
            except ImportError:
                return False
            pillow_heif.register_heif_opener()
        return True
