"""Opening images: every mode, upright, and no way for a file to crash, fill the memory or warn."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from sft_hf.core.errors import DataError, StorageError
from sft_hf.tasks.image import brightness
from sft_hf.tasks.image.images import MAX_PIXELS, map_ahead, open_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(value):
    image = open_image(value)
    assert image.mode == "RGB"
    return np.asarray(image)


def plain(mode, colour, kind="PNG", size=(6, 4), **options):
    return encoded(Image.new(mode, size, colour), kind, **options)


def png_header(width, height, data=b""):
    """A PNG that claims a size; `data` is its compressed content."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (plain("RGB", (10, 20, 30)), (10, 20, 30)),
        (plain("L", 77), (77, 77, 77)),
        (plain("1", 1), (255, 255, 255)),
        (plain("LA", (77, 10)), (77, 77, 77)),
        (plain("RGBA", (10, 20, 30, 0)), (10, 20, 30)),  # as transformers' pipeline: alpha is dropped
        (plain("CMYK", (0, 255, 255, 0), "TIFF"), (255, 0, 0)),
        (plain("YCbCr", (128, 128, 128), "TIFF"), (128, 128, 128)),
        (plain("RGB", (10, 20, 30), "BMP"), (10, 20, 30)),
        (plain("RGB", (10, 20, 30), "WEBP", lossless=True), (10, 20, 30)),
        (plain("L", 77, "GIF"), (77, 77, 77)),
        (plain("RGB", (10, 20, 30), "PPM"), (10, 20, 30)),
        (plain("I;16", 32896), (128, 128, 128)),
        (plain("I;16", 65535), (255, 255, 255)),
        (plain("I", 257 * 200, "TIFF"), (200, 200, 200)),
        (plain("I", 200, "TIFF"), (200, 200, 200)),
        (plain("F", 0.5, "TIFF"), (128, 128, 128)),
        (plain("F", 200.0, "TIFF"), (200, 200, 200)),
    ],
)
def test_every_mode_becomes_8_bit_rgb(content, colour):
    assert (pixels(content) == np.array(colour)).all()


def test_palettes_with_transparency_keep_their_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert (pixels(encoded(image, transparency=b"\x00\x80")) == (200, 100, 50)).all()
    assert (pixels(encoded(image, transparency=1)) == (200, 100, 50)).all()


def test_a_cmyk_jpeg_is_not_inverted():
    found = pixels(plain("CMYK", (0, 255, 255, 0), "JPEG", quality=100))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() < 8


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="32-bit values from nan"):
        open_image(encoded(Image.new("F", (2, 2), float("nan")), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    upright = np.zeros((8, 16, 3), dtype=np.uint8)
    upright[:4, :8] = 250  # the bright corner is at the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose methods that lead from upright to stored
    image = Image.fromarray(upright)
    stored = image.transpose(undo[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(encoded(stored, exif=exif))
    assert (found == upright).all()


def test_damaged_exif_data_do_not_matter():
    content = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff\xff")
    assert pixels(content).shape == (8, 8, 3)


def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(content) == (255, 0, 0)).all()


def test_a_value_may_be_a_path_bytes_a_dict_or_an_image(tmp_path):
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for value in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        content,
        bytearray(content),
        image,
        {"bytes": content, "path": "gone.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ):
        assert (pixels(value) == (1, 2, 3)).all()


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.jpg", encoded(noise(), "JPEG")[:1500], ["is truncated"]),
        ("cut.png", encoded(noise())[:4000], ["is truncated"]),
        ("cut.webp", encoded(noise(), "WEBP")[:700], ["cut.webp"]),
        ("text.png", b"this is no image at all", ["is not a picture", "JPEG"]),
        ("empty.jpg", b"", ["is empty"]),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", ["PostScript", "PNG"]),
        ("bomb.png", png_header(13000, 13000), ["13000 x 13000", "64 million"]),
        ("bigger.png", png_header(100_000, 100_000), ["64 million"]),
        ("line.png", png_header(20_000, 3), ["20000 x 3", "crop it"]),
        ("bad.png", png_header(10, 10, b"not compressed"), ["bad.png"]),
        ("bad.tif", b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\x01" * 60, ["bad.tif"]),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    for value in (str(path), {"bytes": content, "path": str(path)}):
        with pytest.raises(DataError) as caught:
            open_image(value, "train row 7")
        message = str(caught.value)
        assert message.startswith(f"train row 7: {path}: ") and "\n" not in message
        assert all(word in message for word in words), message


def test_a_real_bomb_is_not_decoded(tmp_path):
    rows = zlib.compress((b"\x00" + bytes(13000 // 8)) * 13000, 9)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(13000, 13000, rows))
    assert path.stat().st_size < 25_000 and MAX_PIXELS < 13000 * 13000
    with pytest.raises(DataError, match="13000 x 13000"):
        open_image(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ["there is no image"]),
        ("  ", ["there is no image"]),
        ({"bytes": None, "path": None}, ["there is no image"]),
        (b"", ["is empty"]),
        (3.5, ["3.5", "float"]),
        (["a"], ["list"]),
        ("https://example.org/a.jpg", ["is a URL"]),
        ("data:image/png;base64,AAAA", ["is a URL"]),
        ("nul\x00byte.png", ["train row 1"]),
    ],
)
def test_a_value_that_is_no_image_is_an_error(value, words):
    with pytest.raises(DataError) as caught:
        open_image(value, "train row 1")
    assert all(word in str(caught.value) for word in ["train row 1", *words]), caught.value


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(DataError, match="is a folder or device"):
            open_image(str(path))


def test_wide_grey_is_converted_in_strips(monkeypatch):
    monkeypatch.setattr(brightness, "STRIP", 3)
    ramp = np.arange(80, dtype=np.float32).reshape(8, 10)
    for mode, scale, white in (("F", 1.0, 255), ("I", 3.0, 255), ("I", 800.0, 65535), ("I;16", 800.0, 65535)):
        values = np.round(ramp * scale).astype({"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode])
        found = pixels(Image.fromarray(values))
        assert np.array_equal(found[..., 0], np.round(values * (255.0 / white)))
    ramp[7, 9] = np.nan
    with pytest.raises(DataError, match="32-bit values"):
        open_image(Image.fromarray(ramp))


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "cat_01.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no such file; did you mean cat_01.jpg"):
        open_image(tmp_path / "cat_1.jpg")
    with pytest.raises(DataError, match="the folder does not exist either"):
        open_image(tmp_path / "none" / "cat_1.jpg")
    with pytest.raises(DataError, match="is a folder or device"):
        open_image(tmp_path)


def test_a_failing_disk_is_no_fault_of_the_data(tmp_path, monkeypatch):
    import errno

    def failing(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.png").write_bytes(encoded(noise()))
    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(StorageError, match="Input/output"):
        open_image(tmp_path / "a.png")


def test_pillows_warnings_stay_inside(tmp_path):
    content = png_header(9500, 9500)  # between Pillow's warning and its error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError):
            open_image(content)
    assert not caught


@pytest.mark.parametrize("workers", [1, 3])
def test_map_ahead_keeps_order_bounds_what_waits_and_passes_errors_on(workers):
    running, most, lock = set(), [0], threading.Lock()
    taken = []

    def square(number):
        with lock:
            running.add(number)
            most[0] = max(most[0], len(running))
        if number == 40:
            raise DataError("forty")
        return number * number

    results = map_ahead(square, iter(range(100)), workers)
    with pytest.raises(DataError, match="forty"):
        for result in results:
            taken.append(result)
            with lock:
                running.discard(int(result**0.5))
    assert taken == [number * number for number in range(40)]
    assert most[0] <= 2 * workers + 1


def test_a_link_to_nothing_says_where_it_leads(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"link to .*gone\.png"):
        open_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("length", [200, 5000])
def test_base64_in_place_of_a_path_is_named_in_a_short_line(tmp_path, length):
    with pytest.raises(DataError, match="base64") as error:
        open_image(str(tmp_path / ("iVBORw0K" * (length // 8))))
    assert len(str(error.value)) < 300
