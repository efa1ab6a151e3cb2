"""Pictures of more than 8 bits are on one scale in a whole data set."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sft_hf.core.errors import CheckpointError, DataError
from sft_hf.tasks.image.brightness import UNKNOWN, Brightness, Depth, scale_of
from sft_hf.tasks.image.image_store import ImageStore
from sft_hf.tasks.image.images import DEPTH, open_image


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (0, 1, (0, 1)),
        (0.1, 1.02, (0, 1)),
        (-0.03, 0.9, (0, 1)),
        (-1, 1, (-1, 1)),
        (0, 1.3, (0, 1.3)),  # not nearly black on a scale to 255
        (0, 3, (0, 3)),
        (0, 255, (0, 255)),
        (-4.5, 259.5, (0, 255)),
        (0, 256, (0, 1023)),
        (17, 3890, (0, 4095)),
        (0, 4096, (0, 16383)),
        (0, 65535, (0, 65535)),
        (-1000, 3000, (-1000, 3000)),
        (0, 70000, (0, 70000)),
        (0, 0, (0, 1)),
        (-5, -5, (-5, -4)),
    ],
)
def test_the_scale_of_a_range(low, high, scale):
    assert scale_of(low, high) == scale


def sixteen(*values):
    return Image.fromarray(np.array([values], dtype=np.uint16))


def real(*values):
    return Image.fromarray(np.array([values], dtype=np.float32))


def depths(*pictures):
    return [open_image(picture).info[DEPTH] for picture in pictures]


@pytest.mark.parametrize(
    ("train", "new", "grey"),
    [
        ([sixteen(0, 4000), sixteen(10, 20)], sixteen(0, 2048, 4095), [0, 128, 255]),
        ([sixteen(0, 50000)], sixteen(0, 2048, 65535), [0, 8, 255]),
        ([real(0.1, 1.0), real(0.2, 1.001)], real(0, 0.5, 1.2), [0, 128, 255]),
        ([real(-1000, 3000)], real(-1000, 1000, 5000), [0, 128, 255]),
    ],
)
def test_a_new_picture_is_on_the_scale_of_train(train, new, grey):
    brightness, notes = UNKNOWN.learned(depths(*train), "train")
    assert len(notes) >= 1 and "more than 8 bits" in notes[0] and "0 to 255" in notes[0]
    assert np.asarray(open_image(new, "", brightness))[0, :, 0].tolist() == grey


def test_the_scale_stays_and_what_it_cuts_is_counted():
    brightness, _ = UNKNOWN.learned([Depth("integer", 0, 4000)], "train")
    same, notes = brightness.learned([Depth("integer", 0, 900), Depth("integer", 0, 5000)], "test")
    assert same == brightness
    assert notes == ["test: values outside 0 to 4095 are clipped in 1 image"]


def test_kinds_have_scales_of_their_own():
    brightness, notes = UNKNOWN.learned([Depth("integer", 0, 4000), Depth("float", 0, 1)], "train")
    assert brightness.scales == {"integer": (0, 4095), "float": (0, 1)} and len(notes) == 2


def test_the_scale_is_saved_with_the_model():
    config = SimpleNamespace()
    brightness = Brightness({"float": (0.0, 1.0)})
    brightness.write(config)
    assert Brightness.of(config) == brightness
    UNKNOWN.write(config)
    assert not hasattr(config, "brightness") and Brightness.of(config) == UNKNOWN


@pytest.mark.parametrize(
    "saved", ["x", {"float": [1, 0]}, {"float": [0, float("inf")]}, {"other": [0, 1]}, {"float": 3}]
)
def test_a_saved_scale_that_is_none_is_refused(saved):
    with pytest.raises(CheckpointError, match="brightness"):
        Brightness.of(SimpleNamespace(brightness=saved))


def test_pictures_of_8_bits_are_not_touched():
    brightness = Brightness({"integer": (0, 4095), "float": (0, 1)})
    assert np.asarray(open_image(Image.new("L", (1, 1), 77), "", brightness)).tolist() == [[[77] * 3]]


def test_a_store_keeps_a_picture_once_its_scale_is_known():
    store = ImageStore([sixteen(0, 4095)], [""], budget=1000)
    assert np.asarray(store.open(0))[0, 1, 0] == 16 and not store.holds(0)
    store.brightness = Brightness({"integer": (0, 4095)})
    assert np.asarray(store.open(0))[0, 1, 0] == 255 and store.holds(0)


def colour(tmp_path, factor):
    """A picture of 2 pixels with 16 bits a channel, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    values = np.array([[200, 100, 0], [250, 0, 30]]) * factor
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + values.astype(">u2").tobytes()))
    path = tmp_path / f"{factor}.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    return path


def test_colour_of_16_bits_is_said(tmp_path):
    _, notes = UNKNOWN.learned(depths(colour(tmp_path, 256), colour(tmp_path, 100)), "train")
    assert len(notes) == 1 and "2 colour" in notes[0] and "upper 8 bits" in notes[0]
    assert np.asarray(open_image(colour(tmp_path, 256)))[0, 0].tolist() == [200, 100, 0]
    store = ImageStore([colour(tmp_path, 256)], ["row 0"], 100)
    store.open(0)
    assert store.holds(0)


def test_colour_of_16_bits_that_would_be_black_is_refused(tmp_path):
    with pytest.raises(DataError, match="8 bits"):
        UNKNOWN.learned(depths(colour(tmp_path, 16)), "train")
    assert UNKNOWN.learned(depths(colour(tmp_path, 16), colour(tmp_path, 256)), "train")[1]


def test_colour_of_8_bits_has_no_depth():
    assert DEPTH not in open_image(Image.new("RGB", (2, 2))).info
