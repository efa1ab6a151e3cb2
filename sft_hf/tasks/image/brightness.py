"""A common brightness scale for all images of a data set with more than 8 bits.

A 12-bit scan in a 16-bit file or a float TIFF does not define which value is white, and the brightest value differs
between files. The scale is therefore chosen on the training images, saved in the model's config, and used for all
images; values outside are clipped. There is one scale for integers (16 and 32 bits) and one for floating-point numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sft_hf.core.errors import CheckpointError, DataError
from sft_hf.data.findings import counted

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["integer", "float", "colour"]
KINDS: tuple[Kind, ...] = ("integer", "float")
"""Kinds with a scale."""

COLOUR: Kind = "colour"
"""Colour images with 16 bits per channel, of which Pillow reads the upper 8 bits; they have no scale."""

Scale = tuple[float, float]
"""The values that are mapped to 0 and 255."""

CONFIG_KEY = "brightness"
"""The field of config.json: {kind: [black, white]}."""

STRIP = 256  # rows of an image that are converted at once
_SLACK = 0.05  # of white: excess from resampling, which may be clipped
_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_TOO_DARK = 16.0  # an image with no larger value would be black on a scale of 8 bits or more
_UPPER = 255 / 65535  # approximate factor from a 16-bit value to its upper 8 bits


@dataclass(frozen=True)
class Depth:
    """The value range of an image with more than 8 bits."""

    kind: Kind
    low: float
    high: float
    full: float | None = None
    """The largest value of its format, if the format defines it."""


@dataclass(frozen=True)
class Brightness:
    """The scales of a data set, for the kinds seen so far."""

    scales: Mapping[Kind, Scale] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> Brightness:
        """Return the scales in a saved config. Raises CheckpointError for an invalid scale."""
        saved = getattr(config, CONFIG_KEY, None) or {}
        if not isinstance(saved, dict) or not set(saved) <= set(KINDS) or not all(map(_is_scale, saved.values())):
            raise CheckpointError(f"config.json: {CONFIG_KEY} is {saved!r}; it must be {{kind: [black, white]}}")
        return cls({kind: (float(black), float(white)) for kind, (black, white) in saved.items()})

    def write(self, config: Any) -> None:
        """Write the scales to a config, or remove those of an earlier training."""
        if self.scales:
            setattr(config, CONFIG_KEY, {kind: list(scale) for kind, scale in self.scales.items()})
        elif hasattr(config, CONFIG_KEY):
            delattr(config, CONFIG_KEY)

    def learned(self, depths: Iterable[Depth], where: str) -> tuple[Brightness, list[str]]:
        """Return the scales, with new ones for kinds without a scale, and notes on new scales and clipped values.

        Args:
            depths: of the images of one split.
            where: the split, for the notes.

        Raises DataError for colour images that would be black.
        """
        depths = list(depths)
        scales, notes = dict(self.scales), _colour_notes([depth for depth in depths if depth.kind == COLOUR], where)
        for kind in KINDS:
            of_kind = [depth for depth in depths if depth.kind == kind]
            if not of_kind:
                continue
            low, high = min(depth.low for depth in of_kind), max(depth.high for depth in of_kind)
            what = f"{where}: {counted(len(of_kind), 'image')} of more than 8 bits ({kind} values {low:g} to {high:g})"
            scale = scales.get(kind)
            if scale is None:
                scales[kind] = scale = scale_of(low, high)
                notes.append(f"{what}: {scale[0]:g} to {scale[1]:g} becomes 0 to 255, in every split and at predict")
            beyond = sum(depth.low < scale[0] or depth.high > scale[1] for depth in of_kind)
            if beyond:
                notes.append(
                    f"{where}: values outside {scale[0]:g} to {scale[1]:g} are clipped in {counted(beyond, 'image')}"
                )
        return Brightness(scales), notes


UNKNOWN = Brightness()


def scale_of(low: float, high: float) -> Scale:
    """Return the scale for values from `low` to `high`.

    Fractions: 0 to 1, or -1 to 1 if some are negative. Larger values: 0 to 255, 1023 (10 bits), 4095, 16383 or 65535,
    the first that is large enough. Otherwise from `low` to `high`. A small excess from resampling is ignored.
    """
    for black, white in ((0.0, 1.0), (-1.0, 1.0)):
        if low >= black - _SLACK and high <= white + _SLACK:
            return black, white
    if low >= -_SLACK * high:
        if high <= _TOO_DARK:
            return 0.0, high
        for white in _WHITES:
            if high <= white * (1 + _SLACK if white == 255 and high != round(high) else 1):
                return 0.0, white
    return low, high if high > low else low + 1


def _colour_notes(depths: Sequence[Depth], where: str) -> list[str]:
    if not depths:
        return []
    count, high = len(depths), max(depth.high for depth in depths)
    if high <= _TOO_DARK:
        raise DataError(
            f"{where}: values of {counted(count, 'colour image')} with 16 bits per channel reach about "
            f"{high / _UPPER:.0f} of 65535; only the upper 8 bits are used, in which they are black: "
            "convert them to 8 bits"
        )
    return [f"{where}: only the upper 8 bits are used of {counted(count, 'colour image')} with 16 bits per channel"]


def colour_depth(image: Image.Image) -> Depth | None:
    """Return the depth of a colour image with 16 bits per channel, from its format; None for other images.

    Call it before the pixels are loaded, which converts the image to 8 bits. `low` and `high` are unknown.
    """
    sixteen = image.mode[:1] not in "IF" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return Depth(COLOUR, 0.0, 255.0) if sixteen else None


def depth_of(image: Image.Image, where: str) -> Depth | None:
    """Return the range of an image's values; None for 8-bit images.

    Raises DataError for values that are not finite.
    """
    sixteen = image.mode.startswith("I;16")
    if not sixteen and image.mode not in ("I", "F"):
        return None
    ranges = [(float(np.min(strip)), float(np.max(strip))) for strip in _strips(image)]
    low, high = float(np.min(ranges)), float(np.max(ranges))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where}: holds 32-bit values from {low:g} to {high:g}; replace those that are not finite")
    return Depth("float" if image.mode == "F" else "integer", low, high, 65535.0 if sixteen else None)


def narrowed(image: Image.Image, depth: Depth, brightness: Brightness) -> Image.Image:
    """Return an image of more than 8 bits as 8-bit grey.

    Without a scale of the data set, the image's own range is used, or the range of a 16-bit format. Works strip by
    strip: the whole image in 64 bits may take half a gigabyte.
    """
    from PIL import Image  # needed only to open images

    own = (0.0, depth.full) if depth.full is not None else scale_of(depth.low, depth.high)
    black, white = brightness.scales.get(depth.kind, own)
    factor = 255.0 / (white - black)
    strips = [np.round((strip - black) * factor).clip(0, 255).astype(np.uint8) for strip in _strips(image)]
    return Image.fromarray(np.concatenate(strips))


def _strips(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield strips of rows of a grey image, as float64."""
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        yield np.asarray(strip, dtype=np.uint16 if image.mode.startswith("I;16") else None).astype(np.float64)


def _is_scale(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(isinstance(end, (int, float)) and math.isfinite(end) for end in value) and value[0] < value[1]
