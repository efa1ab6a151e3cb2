"""The laboratory-dictation set as it is committed: its splits keep apart what README.md says they do."""

from __future__ import annotations

import csv
import importlib.util
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "lab_dictation"
COUNTS = {"train": 540, "validation": 60, "test": 170}
Rows = list[dict[str, str]]


def words(row: dict[str, str]) -> list[str]:
    return re.findall(r"[a-z']+", row["transcription"].lower())


@pytest.fixture(scope="module")
def splits() -> dict[str, Rows]:
    found = {}
    for split in COUNTS:
        with open(FOLDER / split / "metadata.csv", newline="", encoding="utf-8") as file:
            found[split] = list(csv.DictReader(file))
    return found


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    for name in ("soundfile", "soxr"):
        pytest.importorskip(name, reason="generate.py works on recordings: pip install 'sft-hf[speech]'")
    spec = importlib.util.spec_from_file_location("lab_dictation_generate", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_has_its_clip_and_every_clip_its_row(splits):
    assert {split: len(rows) for split, rows in splits.items()} == COUNTS
    for split, rows in splits.items():
        assert list(rows[0]) == ["file_name", "transcription", "voice", "group"]
        clips = sorted(path.name for path in (FOLDER / split).glob("*.ogg"))
        assert clips == sorted(row["file_name"] for row in rows)


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 4_000_000


def test_no_sentence_is_there_twice(splits):
    sentences = Counter(" ".join(words(row)) for rows in splits.values() for row in rows)
    assert max(sentences.values()) == 1


def test_the_words_are_rich_and_plainly_written(splits):
    known = {word for row in splits["train"] for word in words(row)}
    assert len(known) > 800
    for rows in splits.values():
        for row in rows:
            assert re.fullmatch(r"[A-Z][A-Za-z', ]+[.?]", row["transcription"]), row
            assert 4 <= len(words(row)) <= 15


def test_unseen_words_are_unseen_and_the_others_seen(splits):
    known = {word for row in splits["train"] for word in words(row)}
    for row in (*splits["validation"], *splits["test"]):
        assert known.issuperset(words(row)) == (row["group"] != "unseen_word"), row


def test_one_voice_is_in_the_test_set_alone(splits):
    voices = {split: Counter(row["voice"] for row in rows) for split, rows in splits.items()}
    assert len(voices["train"]) == 8
    assert min(voices["train"].values()) > 60
    assert set(voices["validation"]) <= set(voices["train"])
    new = set(voices["test"]) - set(voices["train"])
    assert len(new) == 1
    for row in splits["test"]:
        assert (row["voice"] in new) == (row["group"] == "unseen_voice"), row


def test_groups(splits):
    assert {row["group"] for split in ("train", "validation") for row in splits[split]} == {"seen"}
    groups = Counter(row["group"] for row in splits["test"])
    assert groups == {"seen": 102, "unseen_word": 34, "unseen_voice": 34}


@pytest.mark.long
def test_every_clip_is_speech_of_a_fitting_length(splits):
    soundfile = pytest.importorskip("soundfile")
    seconds = 0.0
    for split, rows in splits.items():
        for index, row in enumerate(rows):
            path = FOLDER / split / row["file_name"]
            info = soundfile.info(path)
            assert (info.format, info.subtype, info.channels, info.samplerate) == ("OGG", "OPUS", 1, 16000)
            assert 1 < info.duration < 7
            assert 0.1 < info.duration / len(words(row)) < 1
            seconds += info.duration
            if index % 10 == 0:  # to decode them all takes some seconds
                samples, _ = soundfile.read(path)
                assert len(samples) == info.frames
                assert 0.3 < abs(samples).max() <= 1.2
    assert 2300 < seconds < 2500


def test_the_set_is_what_its_generator_makes(splits, generate):
    plan = generate.plan(random.Random(generate.SEED))
    without_names = {
        split: [{key: row[key] for key in plan["train"][0]} for row in rows] for split, rows in splits.items()
    }
    assert plan == without_names
    assert len(set(generate.FRAMES)) >= 40


def test_numbers_in_words(generate):
    expected = {0: "zero", 19: "nineteen", 40: "forty", 87: "eighty seven", 500: "five hundred"}
    expected |= {990: "nine hundred ninety", 12_300: "twelve thousand three hundred", 1_001: "one thousand one"}
    assert {number: generate.words_of(number) for number in expected} == expected
