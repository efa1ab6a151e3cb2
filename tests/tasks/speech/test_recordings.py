"""Recordings that are none, and sets of recordings from everywhere."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from small_runs import briefly
from speech_examples import FAMILIES, opened
from tiers import quick

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import load_recipe


@pytest.fixture
def bad_folder(speech_folder, tmp_path):
    """Two good rows, and one of each kind of bad ones behind them; returns the folder and {row: words of its error}."""
    import soundfile

    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("00.wav", "01.wav"):
        shutil.copy(speech_folder / "train" / name, folder)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "blink.wav", 0.1 * np.ones(800), 16_000)
    soundfile.write(folder / "long.flac", np.zeros(31 * 8000), 8000)
    (folder / "text.wav").write_text("no sound")
    (folder / "zero.wav").touch()
    rows = [
        ("00.wav", "four five", None),
        ("01.wav", "one one five six", None),
        ("none.wav", "one", "row 2: .*none.wav: holds no audio"),
        ("long.flac", "one", r"row 3: .*long.flac: lasts 31\.0 s, at most"),
        ("text.wav", "one", "row 4: .*text.wav: is not a recording that can be read"),
        ("zero.wav", "one", "row 5: .*zero.wav: is an empty file"),
        ("gone.wav", "one", "row 6: .*gone.wav: no such file; did you mean none.wav"),
        ("00.wav", " ", "row 7: .*00.wav: column 'transcription' holds no transcript"),
        ("", "one", "row 8: .*nothing where a path"),
        ("blink.wav", "one two three", None),  # 0.05 s: a row for Whisper, and none for CTC
    ]
    table = "".join(f"{name},{text}\n" for name, text, _ in rows)
    (folder / "train.csv").write_text("audio,transcription\n" + table)
    return folder, {index: words for index, (_, _, words) in enumerate(rows) if words}


@pytest.mark.parametrize("family", quick(["whisper"], FAMILIES))
def test_bad_recordings_are_named_or_skipped(make_speech_recipe, checkpoints, bad_folder, family, caplog):
    from datasets import Dataset

    from sft_hf.data.tables.files import read_table

    folder, wrong = bad_folder
    if family == "wav2vec2":
        wrong[9] = "row 9: .*blink.wav: is too short for its transcript: 13 characters need at least 14 frames"
    none = {"data__validation_split": None, "data__validation_fraction": 0, "data__test_fraction": 0}
    settings = {"model__name": checkpoints[family], "data__name": str(folder), **none}
    task, _, _ = opened(make_speech_recipe(data__on_bad_row="skip", **settings))
    table = read_table(folder / "train.csv")
    paths = [str(folder / name) if name else name for name in table["audio"]]
    strict = make_speech_recipe(**settings)
    for row, words in wrong.items():
        values = {"audio": [paths[row]], "transcription": [table["transcription"][row]], "row_id": [row]}
        task.recipe.data.on_bad_row = "stop"
        with pytest.raises(DataError, match=words) as caught:
            task.prepare(Dataset.from_dict(values), "train.csv")
        assert str(caught.value).startswith("train.csv row ") and "on_bad_row: skip" in str(caught.value)
    with pytest.raises(DataError, match="row 2"):
        briefly(strict)
    task, examples, _ = opened(make_speech_recipe(data__on_bad_row="skip", **settings))
    assert examples.row_ids.tolist() == sorted(set(range(10)) - set(wrong))
    (note,) = [note for note in examples.notes if "skipped" in note]
    assert note.startswith(f"train.csv: {len(wrong)} of 10 rows skipped") and "gone.wav" in note
    result = briefly(make_speech_recipe(data__on_bad_row="skip", train__max_steps=1, **settings))
    assert result.metrics["train"]["num_examples"] == 10 - len(wrong)


def test_nothing_but_bad_rows_is_an_error(make_speech_recipe, tmp_path):
    (tmp_path / "train.csv").write_text("audio,transcription\nx.wav,one\ny.wav,two\n")
    with pytest.raises(DataError, match=r"none of its rows can be used; the first: .*x\.wav"):
        opened(
            make_speech_recipe(
                data__name=str(tmp_path), data__on_bad_row="skip", data__validation_fraction=0, data__test_fraction=0
            )
        )


def test_sets_of_the_hub_bring_bytes(make_speech_recipe, speech_folder, tmp_path):
    from datasets import Audio, Dataset, DatasetDict

    paths = sorted((speech_folder / "train").glob("*.wav"))
    rows = {
        "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "transcription": ["four five"] * 8,
    }
    split = Dataset.from_dict(rows).cast_column("audio", Audio(sampling_rate=16_000))
    DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "saved")
    _, examples, _ = opened(make_speech_recipe(data__name=str(tmp_path / "saved")))
    _, files, _ = opened(make_speech_recipe())
    by_seconds = {row["seconds"]: row["features"] for row in files.features}
    assert all(row["seconds"] in by_seconds for row in examples.features)
    assert len(examples) == 8 - 1  # one was held out for validation


def test_a_stream_of_recordings(make_speech_recipe, speech_folder):
    result = briefly(
        make_speech_recipe(
            data__streaming=True,
            data__audio_column="file_name",
            data__stream_buffer_size=4,
            train__max_steps=3,
            task__speed_factors=[0.9, 1.1],
        )
    )
    assert result.metrics["train"]["num_steps"] == 3


def test_features_beyond_the_cache_are_made_anew(make_speech_recipe, monkeypatch):
    from sft_hf.tasks.speech import rows

    _, kept, _ = opened(make_speech_recipe())
    plain = [row["features"] for row in kept.features]
    _, examples, _ = opened(make_speech_recipe())
    clips = rows.ClipStore(examples.features.store.clips, 16_000, examples.features.store.extract, budget=60_000)
    again = [clips.features(row) for row in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    assert 0 < sum(array.nbytes for array in clips._kept.values()) <= 60_000
    kept_rows = {row for row in range(8) if clips.features(row) is clips.features(row)}
    assert 0 in kept_rows and len(kept_rows) < 8


def test_a_recipe_brings_its_data_along(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "recipes" / "speech.yaml"
    file.write_text("task: speech_recognition\nmodel: {name: org/name}\ndata: {name: ./mine}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(str(file)).data.name == str(tmp_path / "recipes" / "mine")
    assert load_recipe(str(file), ["data.name=./mine"]).data.name == "./mine"  # said on the command line: here
    (tmp_path / "elsewhere" / "mine").mkdir()
    assert load_recipe(str(file)).data.name == str(tmp_path / "elsewhere" / "mine")
