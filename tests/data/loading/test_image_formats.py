"""A file is a picture if the reader opens it, whatever its ending; what is not is refused by name."""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from sft_hf.core.errors import DataError
from sft_hf.data.loading import image_formats
from sft_hf.data.loading.image_folders import IMAGE_SUFFIXES, list_pictures
from sft_hf.data.loading.image_formats import all_formats, is_picture
from sft_hf.tasks.image.images import open_image

RED = (200, 30, 40)


def encoded(kind, size=(9, 7), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, RED).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = {
    "photo.jfif": encoded("JPEG"),
    "photo.jpe": encoded("JPEG"),
    "photo": encoded("PNG"),
    "photo.dat": encoded("WEBP", lossless=True),
    "photo.txt": encoded("GIF"),
    "scan.avif": encoded("AVIF", quality=100),
    "scan.jp2": encoded("JPEG2000"),
    "icon.ico": encoded("ICO", size=(16, 16)),
    "art.tga": encoded("TGA"),
    "art.pcx": encoded("PCX"),
    "art.sgi": encoded("SGI"),
    "art.dds": encoded("DDS"),
    "art.icns": encoded("ICNS", size=(32, 32)),
    "frame.qoi": encoded("QOI") if "QOI" in Image.SAVE else encoded("BMP"),
    "photo.123": encoded("TIFF"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_one_whatever_its_ending(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    assert list_pictures(tmp_path).pictures == [path]
    found = np.asarray(open_image(path)).astype(int)
    assert np.abs(found - RED).mean() < 8


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"#define x 1\n", b"\x00" * 500, b"P3 is a projector", bytes(range(256)), b"%PDF-1.7 ..."],
)
def test_other_files_are_not_pictures(tmp_path, content):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert not is_picture(path)
    assert list_pictures(tmp_path).others == [path]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_picture(tmp_path / "pipe")


def test_trusted_endings_are_not_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(image_formats, "is_picture", lambda path: pytest.fail("looked into"))
    for ending in IMAGE_SUFFIXES:
        (tmp_path / f"a{ending}").write_bytes(b"")
    assert len(list_pictures(tmp_path).pictures) == len(IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("logo.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG", "PNG"]),
        ("logo.png", b'<?xml version="1.0"?>\n<svg width="4"/>', ["SVG"]),
        ("page.jpg", b"<!DOCTYPE html><html>", ["web page", "download"]),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid", ["Git LFS", "git lfs pull"]),
        ("._a.jpg", b"\x00\x05\x16\x07" + bytes(40), ["macOS", "remove"]),
        ("doc.png", b"%PDF-1.4", ["PDF"]),
        ("fig.eps", b"%!PS-Adobe-3.0 EPSF-3.0", ["PostScript"]),
        ("clip.jpg", b"\x00\x00\x00\x18ftypmp42" + bytes(20), ["video"]),
        ("set.jpg", b"PK\x03\x04" + bytes(30), ["zip"]),
        ("link.jpg", b"/home/me/set/train/red/000.jpg", ["link", "/home/me"]),
    ],
)
def test_what_is_not_a_picture_is_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ") and all(word in str(caught.value) for word in words)


def test_no_format_that_runs_a_program_is_tried():
    assert not {"EPS", "WMF", "MPEG", "HDF5"} & set(all_formats())
    assert {"JPEG", "PNG", "WEBP", "TIFF", "AVIF", "ICO", "TGA"} <= set(all_formats())


def test_formats_without_a_mark_are_tried_by_their_ending_alone(tmp_path):
    for name in ("a.tga", "a.bin"):
        (tmp_path / name).write_bytes(encoded("TGA"))
    assert np.asarray(open_image(tmp_path / "a.tga")).shape == (7, 9, 3)
    with pytest.raises(DataError, match="is not a picture"):
        open_image(tmp_path / "a.bin")


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg", "photo"])
def test_heic(tmp_path, name):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / name
    heif.from_pillow(Image.new("RGB", (64, 48), RED)).save(path, quality=95, format="HEIF")
    assert list_pictures(tmp_path).pictures == [path]
    image = open_image(path)
    assert image.size == (64, 48) and np.abs(np.asarray(image).astype(int) - RED).max() < 10


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_says_what_to_install(tmp_path, monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00" + brand + b"miaf" + bytes(40))
    with pytest.raises(DataError, match=r"photo\.heic: is a HEIC picture.*sft-hf\[heic\]"):
        open_image(path)


def test_lab_and_premultiplied_colours():
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (4, 4), RED), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert np.abs(np.asarray(open_image(lab)).astype(int) - RED).max() <= 4
    assert (np.asarray(open_image(Image.new("RGBA", (4, 4), (*RED, 255)).convert("RGBa"))) == RED).all()
