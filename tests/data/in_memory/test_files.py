"""Pictures and recordings in memory: the same pixels and samples come out, and what cannot be one is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import soundfile
from datasets import Dataset, Image
from PIL import Image as Pictures

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.in_memory.pictures import picture_cell
from sft_hf.data.in_memory.recordings import recording_cell, wav_bytes
from sft_hf.data.in_memory.splits import as_dataset
from sft_hf.tasks.image.images import open_image
from sft_hf.tasks.speech.audio import audio_info, read_audio

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
SAMPLES = np.sin(np.arange(1600) / 10).astype(np.float32)


def seen(value):
    return np.asarray(open_image(picture_cell(value, "row 0")))


@pytest.mark.parametrize("value", [PIXELS, Pictures.fromarray(PIXELS)], ids=["array", "pillow"])
def test_the_same_pixels(value):
    assert (seen(value) == PIXELS).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (PIXELS[:, :, 0], PIXELS[:, :, :1].repeat(3, axis=2)),
        (PIXELS[:, :, :1], PIXELS[:, :, :1].repeat(3, axis=2)),
        (PIXELS[:, :, 0] > 99, 255 * (PIXELS[:, :, :1] > 99).repeat(3, axis=2)),
        (np.dstack([PIXELS, PIXELS[:, :, 0]]), PIXELS),
        (PIXELS[:, ::-1], PIXELS[:, ::-1]),  # not contiguous
    ],
    ids=["grey", "one channel", "bool", "alpha", "mirrored"],
)
def test_arrays(value, expected):
    assert (seen(value) == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F"])
def test_pillow_images_of_every_mode(mode):
    image = (
        Pictures.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 250)
        if mode == "I;16"
        else Pictures.fromarray(PIXELS).convert(mode)
    )
    expected = np.asarray(open_image(image)).astype(int)
    assert np.abs(seen(image) - expected).max() <= (2 if mode in ("YCbCr", "HSV") else 0)


def test_a_picture_of_a_camera_is_upright(tmp_path):
    exif = Pictures.Exif()
    exif[274] = 6  # a quarter turn
    Pictures.fromarray(PIXELS).save(tmp_path / "photo.png", exif=exif)
    with Pictures.open(tmp_path / "photo.png") as image:
        cell = picture_cell(image, "row 0")
    assert cell["path"] == str(tmp_path / "photo.png")
    assert (np.asarray(open_image(cell)) == np.rot90(PIXELS, -1)).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (PIXELS / 255, "float64|255"),
        (PIXELS.transpose(2, 0, 1).repeat(2, axis=1), "transpose"),
        (PIXELS[None], "[1, 6, 5, 3]"),
        (PIXELS.tolist(), "a list"),
        (PIXELS[:0], "[0, 5, 3]"),
        (3, "int"),
    ],
)
def test_what_is_not_a_picture(value, words):
    with pytest.raises(DataError) as error:
        picture_cell(value, "train row 4: column 'image'")
    assert str(error.value).startswith("train row 4: column 'image' holds")
    assert all(word in str(error.value) for word in words.split("|")), error.value


def test_a_damaged_picture_is_named(tmp_path):
    Pictures.fromarray(PIXELS.repeat(40, 0).repeat(40, 1)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    with (
        Pictures.open(io.BytesIO(content[: len(content) // 2])) as image,
        pytest.raises(DataError, match=r"^row 2 holds"),
    ):
        picture_cell(image, "row 2")


# --- recordings --------------------------------------------------------------------------------------------------


def heard(value, rate=8000):
    return read_audio(recording_cell(value, "row 0"), rate)


@pytest.mark.parametrize(
    "value",
    [
        {"array": SAMPLES, "sampling_rate": 8000},
        {"array": SAMPLES.tolist(), "sampling_rate": 8000.0, "path": None},
        (SAMPLES, 8000),
        (8000, SAMPLES.astype(np.float64)),
        (np.stack([SAMPLES, SAMPLES], axis=1), np.int64(8000)),
        (np.stack([SAMPLES, SAMPLES]), 8000),
    ],
    ids=["dict", "lists", "array first", "rate first", "channels last", "channels first"],
)
def test_the_same_samples(value):
    assert (heard(value) == SAMPLES).all()


@pytest.mark.parametrize(("kind", "scale"), [(np.int16, 2**15), (np.int32, 2**31)])
def test_integer_samples(kind, scale):
    integers = np.clip(SAMPLES.astype(np.float64) * scale, -scale, scale - 1).astype(kind)
    assert np.abs(heard((integers, 8000)) - SAMPLES).max() < 2 / 2**15
    assert audio_info(recording_cell((integers, 8000), "")).frames == len(SAMPLES)


def test_wav_files_are_the_same_each_time_and_read_by_others():
    data = wav_bytes(SAMPLES[:, None], 8000)
    assert data == wav_bytes(SAMPLES[:, None], 8000)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 8000 and (samples == SAMPLES).all()
    assert soundfile.info(io.BytesIO(data)).subtype == "FLOAT"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (SAMPLES, "rate"),
        ({"array": SAMPLES}, "rate"),
        ((SAMPLES, 0), "0"),
        ((SAMPLES, "fast"), "fast"),
        ((SAMPLES * 30000, 8000), "int16"),
        ((SAMPLES * np.nan, 8000), "finite"),
        ((SAMPLES[:0], 8000), "without samples"),
        ((SAMPLES[None, None], 8000), "[1, 1, 1600]"),
        ((SAMPLES.astype(np.int64), 8000), "int64"),
        (({"a": 1}, 8000), "array"),
        (3.5, "float"),
    ],
)
def test_what_is_not_a_recording(value, words):
    with pytest.raises(DataError) as error:
        recording_cell(value, "train row 4: column 'audio'")
    assert str(error.value).startswith("train row 4: column 'audio' holds")
    assert words in str(error.value), error.value


# --- columns of them ---------------------------------------------------------------------------------------------

IMAGES = {"data.image_column": "image", "data.label_column": "label"}
AUDIO = {"data.audio_column": "audio", "data.transcription_column": "transcription"}


@pytest.mark.parametrize(
    "make",
    [
        pd.DataFrame,
        dict,
        lambda columns: pl.DataFrame({**columns, "image": pl.Series(columns["image"], dtype=pl.Object)}),
    ],
)
def test_a_column_of_pictures(make):
    table = as_dataset(
        make({"image": [PIXELS, Pictures.fromarray(PIXELS)], "label": ["a", "b"]}),
        "train",
        DataSection(name="memory"),
        IMAGES,
    )
    assert all((np.asarray(open_image(cell)) == PIXELS).all() for cell in table["image"])


def test_one_array_of_all_pictures():
    table = as_dataset(
        {"image": np.stack([PIXELS, PIXELS]), "label": np.array([0, 1])}, "train", DataSection(name="memory"), IMAGES
    )
    assert len(table) == 2 and (np.asarray(open_image(table[1]["image"])) == PIXELS).all()


def test_paths_stay_paths_and_mix_with_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = DataSection(name="memory", file_prefix="pictures/", file_suffix=".png")
    alone = as_dataset({"image": [Path("a"), None], "label": ["a", "b"]}, "train", section, IMAGES)
    assert alone["image"][:] == ["a", None]
    mixed = as_dataset({"image": ["a", PIXELS, b"bytes", None], "label": list("abcd")}, "train", section, IMAGES)
    assert mixed[0]["image"] == {"bytes": None, "path": str(tmp_path / "pictures" / "a.png")}
    assert mixed[2]["image"]["bytes"] == b"bytes" and mixed[3]["image"] is None


def test_the_row_of_a_bad_cell_is_named():
    with pytest.raises(DataError, match=r"^test row 1: column 'image' holds"):
        as_dataset({"image": [PIXELS, 7], "label": ["a", "b"]}, "test", DataSection(name="memory"), IMAGES)


def test_data_sets_of_pictures_and_samples():
    images = Dataset.from_dict({"image": [Pictures.fromarray(PIXELS)], "label": ["a"]}).cast_column("image", Image())
    assert "image" in as_dataset(images, "train", DataSection(name="memory"), IMAGES).column_names
    clips = Dataset.from_list([{"audio": {"array": SAMPLES.tolist(), "sampling_rate": 8000}, "transcription": "a"}])
    table = as_dataset(clips, "train", DataSection(name="memory"), AUDIO)
    assert (read_audio(table[0]["audio"], 8000) == SAMPLES).all()


def test_columns_of_times_are_kept():
    rows = [{"audio": "a.wav", "offset": 0.5, "duration": 1.0, "transcription": "x", "junk": object()}]
    table = as_dataset(rows, "train", DataSection(name="memory"), AUDIO)
    assert set(table.column_names) == {"audio", "offset", "duration", "transcription"}
