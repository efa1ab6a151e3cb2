"""One brightness scale for all pictures of a data set that have more than 8 bits.

A 12-bit scan in a 16-bit file and a float TIFF do not say which value is white, and the brightest value of one file is
not that of another. The scale is therefore chosen on the training pictures, saved in the model's config, and used for
every picture from then on: values outside it are cut. There is one for whole numbers (16 and 32 bits) and one for
floating-point numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sft_hf.core.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["integer", "float", "colour"]
KINDS: tuple[Kind, ...] = ("integer", "float")
"""Those that have a scale."""

COLOUR: Kind = "colour"
"""The kind of pictures with 16 bits a channel, of which the reader gives the upper 8: they have no scale."""

Scale = tuple[float, float]
"""The values that become 0 and 255."""

CONFIG_KEY = "brightness"
"""The field of config.json: {kind: [black, white]}."""

STRIP = 256  # rows of an image that are converted at once
_SLACK = 0.05  # of white: what resampling adds to a range, and may be cut
_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_TOO_DARK = 16.0  # a picture with no larger value would be black on a scale of 8 bits or more
_UPPER = 255 / 65535  # of a value of 16 bits, about what its upper 8 bits are


@dataclass(frozen=True)
class Depth:
    """What a picture of more than 8 bits holds."""

    kind: Kind
    low: float
    high: float
    full: float | None = None
    """The largest value that its format can hold, where the format says so."""


@dataclass(frozen=True)
class Brightness:
    """The scales of a data set; of a kind that was not seen yet there is none."""

    scales: Mapping[Kind, Scale] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> Brightness:
        """Return what a saved config says. Raises CheckpointError for what is not a scale."""
        saved = getattr(config, CONFIG_KEY, None) or {}
        if not isinstance(saved, dict) or not set(saved) <= set(KINDS) or not all(map(_is_scale, saved.values())):
            raise CheckpointError(f"config.json: {CONFIG_KEY} is {saved!r}; it must be {{kind: [black, white]}}")
        return cls({kind: (float(black), float(white)) for kind, (black, white) in saved.items()})

    def write(self, config: Any) -> None:
        """Put the scales into a config, and take out what an earlier training put there."""
        if self.scales:
            setattr(config, CONFIG_KEY, {kind: list(scale) for kind, scale in self.scales.items()})
        elif hasattr(config, CONFIG_KEY):
            delattr(config, CONFIG_KEY)

    def learned(self, depths: Iterable[Depth], where: str) -> tuple[Brightness, list[str]]:
        """Return these scales, with one for each kind that had none yet, and notes on what was chosen or is cut.

        Args:
            depths: of the pictures of one split.
            where: the split, for the notes.

        Raises DataError for colour of which nothing would be seen.
        """
        depths = list(depths)
        scales, notes = dict(self.scales), _colour_notes([depth for depth in depths if depth.kind == COLOUR], where)
        for kind in KINDS:
            of_kind = [depth for depth in depths if depth.kind == kind]
            if not of_kind:
                continue
            low, high = min(depth.low for depth in of_kind), max(depth.high for depth in of_kind)
            what = f"{where}: {len(of_kind)} picture(s) of more than 8 bits ({kind} values {low:g} to {high:g})"
            scale = scales.get(kind)
            if scale is None:
                scales[kind] = scale = scale_of(low, high)
                notes.append(f"{what}: {scale[0]:g} to {scale[1]:g} becomes 0 to 255, in every split and at predict")
            beyond = sum(depth.low < scale[0] or depth.high > scale[1] for depth in of_kind)
            if beyond:
                notes.append(f"{where}: values outside {scale[0]:g} to {scale[1]:g} are clipped in {beyond} image(s)")
        return Brightness(scales), notes


UNKNOWN = Brightness()


def scale_of(low: float, high: float) -> Scale:
    """Return the scale for values from `low` to `high`.

    Fractions: 0 to 1, or -1 to 1 where some are negative. Larger values: 0 to 255, 1023 (10 bits), 4095, 16383 or
    65535, the first that is large enough. Everything else is stretched from `low` to `high`. A little beyond, as
    resampling leaves it, is cut.
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
            f"{where}: {count} colour picture(s) of 16 bits a channel hold values up to about {high / _UPPER:.0f} of "
            "65535; colour is read by its upper 8 bits, in which they are black: write them as pictures of 8 bits"
        )
    return [f"{where}: {count} colour picture(s) of 16 bits a channel are read by their upper 8 bits"]


def colour_depth(image: Image.Image) -> Depth | None:
    """Return what is known of a picture in colour of 16 bits a channel, from its format; None for another.

    Call it before the pixels are loaded; afterwards it looks like one of 8 bits. `low` and `high` are unknown.
    """
    sixteen = image.mode[:1] not in "IF" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return Depth(COLOUR, 0.0, 255.0) if sixteen else None


def depth_of(image: Image.Image, where: str) -> Depth | None:
    """Return the range of a picture's values; None for one of 8 bits.

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
    """Return a picture of more than 8 bits as 8-bit grey.

    Where its data set has no scale, its own values decide, of 16-bit formats the largest that they can hold. It is
    done strip by strip: in 64 bits the whole may take half a gigabyte.
    """
    from PIL import Image  # which only those who open pictures need

    own = (0.0, depth.full) if depth.full is not None else scale_of(depth.low, depth.high)
    black, white = brightness.scales.get(depth.kind, own)
    factor = 255.0 / (white - black)
    strips = [np.round((strip - black) * factor).clip(0, 255).astype(np.uint8) for strip in _strips(image)]
    return Image.fromarray(np.concatenate(strips))


def _strips(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield the rows of a grey image, some at a time, as float64."""
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        yield np.asarray(strip, dtype=np.uint16 if image.mode.startswith("I;16") else None).astype(np.float64)


def _is_scale(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(isinstance(end, (int, float)) and math.isfinite(end) for end in value) and value[0] < value[1]
