"""The data in numbers, as metrics.json has them."""

from __future__ import annotations

import json

import soundfile

from sft_hf.jobs.finetune import finetune


def test_text(make_recipe, data_folder):
    data = finetune(make_recipe(train__max_steps=1, task__max_length=8)).metrics["data"]
    train = data["splits"]["train"]
    assert train["num_examples"] == 81 and sum(train["labels"].values()) == 81
    assert data["splits"]["test"]["labels"] == {"food": 10, "money": 10, "sport": 10}
    assert train["length_unit"] == "tokens" and train["lengths"]["max"] == 8
    histogram = train["lengths"]["histogram"]
    assert sum(histogram["counts"]) == 81 and len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert any("longer than 8 tokens" in note for note in data["notes"])
    assert {
        "level": "note",
        "text": "test: always answering 'sport', the most frequent label of train, would have accuracy 0.3333",
    } in data["findings"]


def test_images_have_no_length(make_image_recipe):
    split = finetune(make_image_recipe(train__max_steps=1)).metrics["data"]["splits"]["test"]
    assert split == {"num_examples": 12, "labels": {"blue": 4, "green": 4, "red": 4}}


def test_what_was_left_out_is_noted(make_image_recipe, write_image_folder, tmp_path):
    write_image_folder(tmp_path / "data", 6)
    (tmp_path / "data" / "red" / "readme.docx").write_bytes(b"no picture")
    (tmp_path / "data" / "blue" / "model.psd.bak").write_bytes(b"no picture")
    data = finetune(make_image_recipe(data__name=str(tmp_path / "data"), train__max_steps=1)).metrics["data"]
    assert any("2" in note and (".docx" in note or ".bak" in note) for note in data["notes"]), data["notes"]


def test_rows_that_were_drawn_are_noted(make_recipe):
    data = finetune(make_recipe(train__max_steps=1, data__max_test_samples=7)).metrics["data"]
    assert any("test: 7 of 30 rows" in note for note in data["notes"])


def test_recordings_are_measured_in_seconds(make_speech_recipe, speech_folder):
    split = finetune(make_speech_recipe(train__max_steps=1)).metrics["data"]["splits"]["test"]
    longest = max(soundfile.info(path).duration for path in (speech_folder / "test").glob("*.wav"))
    assert split["length_unit"] == "seconds" and "labels" not in split
    assert abs(split["lengths"]["max"] - longest) < 0.011


def test_a_stream_is_not_counted(make_recipe):
    data = {"streaming": True, "validation_fraction": 0.0, "label_names": ["sport", "money", "food"]}
    changes = {f"data__{key}": value for key, value in data.items()}
    result = finetune(make_recipe(**changes, train__max_steps=2))
    assert set(result.metrics["data"]["splits"]) == {"test"}
    json.dumps(result.metrics, allow_nan=False)
