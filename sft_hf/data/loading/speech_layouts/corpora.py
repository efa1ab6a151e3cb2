"""Common Voice, LJSpeech, LibriSpeech and Multilingual LibriSpeech, in their published layouts.

cv-corpus/                    LJSpeech-1.1/                    LibriSpeech/
  clips/*.mp3                   wavs/LJ001-0001.wav              train-clean-100/19/198/19-198.trans.txt
  train.tsv dev.tsv test.tsv    metadata.csv (id|text|text)      train-clean-100/19/198/19-198-0000.flac
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.loading.speech_layouts.rows import Layout, Read, Spoken, read_lines, recording_beside, table_of
from sft_hf.data.tables.files import read_table

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.recipe.recipe import DataSection

_ROLES = {"train": "train", "dev": "validation", "test": "test"}
_LIBRI_DEPTHS = ("*/*/*.trans.txt", "*/*/*/*.trans.txt", "LibriSpeech/*/*/*/*.trans.txt")


def common_voice(folder: Path, section: DataSection) -> Layout | None:
    """Recognize Common Voice: a folder `clips`, and tables with `path` and `sentence` next to it."""
    if not (folder / "clips").is_dir():
        return None
    tables = {}
    for path in sorted(folder.glob("*.tsv")):
        with open(path, encoding="utf-8", errors="replace") as file:
            header = file.readline(1 << 16).lstrip("\ufeff").rstrip("\r\n").split("\t")
        if {"path", "sentence"} <= set(header):
            tables[path.stem] = path
    if not tables:
        return None
    splits: dict[str, Read] = {name: partial(_common_voice_split, path, section) for name, path in tables.items()}
    notes = []
    if section.train_split == "train" and "train" not in splits and "validated" in splits:
        splits["train"] = splits.pop("validated")
        notes.append("train: validated.tsv, because there is no train.tsv")
    return Layout("Common Voice", splits, notes)


def common_voice_table(table: Path, section: DataSection) -> Read:
    """Return the reader for one of its tables."""
    return partial(_common_voice_split, table, section)


def _common_voice_split(path: Path, section: DataSection) -> tuple[Dataset, list[str]]:
    table = read_table(path, delimiter="\t", quote_char="")  # quotation marks are ordinary characters here
    clips = path.parent / "clips"
    files = []
    for name in table["path"]:
        file = clips / str(name)
        files.append(str(file if file.suffix or file.exists() else file.with_name(file.name + ".mp3")))
    kept = table.remove_columns([name for name in ("path", section.audio_column) if name in table.column_names])
    if section.transcription_column not in kept.column_names:
        kept = kept.rename_column("sentence", section.transcription_column)
    return kept.add_column(section.audio_column, files), []


def ljspeech(folder: Path, section: DataSection) -> Layout | None:
    """Recognize LJSpeech: metadata.csv without a header, with fields separated by |, and a folder `wavs`."""
    table = next((path for name in ("metadata.csv", "metadata.txt") if (path := folder / name).is_file()), None)
    wavs = next((path for name in ("wavs", "wav") if (path := folder / name).is_dir()), None)
    if table is None or wavs is None:
        return None
    with open(table, encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(1 << 16).rstrip("\r\n").split("|")
    if len(first) < 2 or not (_clip(wavs, first[0])).is_file():
        return None
    return Layout("LJSpeech", {section.train_split: partial(_ljspeech_rows, table, wavs, section)})


def _clip(wavs: Path, name: str) -> Path:
    path = wavs / name
    return path if path.is_file() else recording_beside(path) or path.with_name(path.name + ".wav")


def _ljspeech_rows(table: Path, wavs: Path, section: DataSection) -> tuple[Dataset, list[str]]:
    rows = []
    normalized = 0
    for number, line in enumerate(read_lines(table), start=1):
        if not line.strip():
            continue
        fields = line.split("|")
        if len(fields) not in (2, 3):
            raise DataError(
                f"{table}: line {number} has {len(fields)} fields; LJSpeech has id|text or id|text|normalized text"
            )
        chosen = fields[1]
        if len(fields) == 3 and fields[2].strip() and section.transcription_column != "text":
            chosen = fields[2]
            normalized += 1
        rows.append(Spoken(_clip(wavs, fields[0].strip()), chosen))
    note = f"{table.name}: transcripts are its third field, the normalized text, in {normalized} of {len(rows)} rows"
    more = " (data.transcription_column: text takes the second)"
    return table_of(rows, section, table.name), [note + more] if normalized else []


def librispeech(folder: Path, section: DataSection) -> Layout | None:
    """Recognize LibriSpeech: SPEAKER/CHAPTER/*.trans.txt, in one folder or in one for each subset."""
    for depth in _LIBRI_DEPTHS:
        found = sorted(folder.glob(depth))
        if found:
            break
    else:
        return None
    if depth == _LIBRI_DEPTHS[0]:
        return Layout("LibriSpeech", {section.train_split: partial(_libri_rows, found, section, folder.name)})
    subsets: dict[str, list[Path]] = {}
    for path in found:
        subsets.setdefault(path.parents[2].name, []).append(path)
    splits: dict[str, Read] = {name: partial(_libri_rows, paths, section, name) for name, paths in subsets.items()}
    notes = []
    for start, role in _ROLES.items():  # merges all subsets of a kind; a subset that the recipe names is also a split
        members = sorted(name for name in subsets if name.startswith(start))
        if members and role not in splits:
            paths = [path for name in members for path in subsets[name]]
            splits[role] = partial(_libri_rows, paths, section, " + ".join(members))
            notes.append(f"{role}: {', '.join(members)}")
            for name in set(members) - {section.train_split, section.validation_split, section.test_split}:
                del splits[name]
    return Layout("LibriSpeech", splits, notes)


def _libri_rows(transcripts: list[Path], section: DataSection, where: str) -> tuple[Dataset, list[str]]:
    rows, missing = [], []
    for path in transcripts:
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            recording = recording_beside(path.parent / name)
            if recording is None:
                missing.append(f"{path.name} line {number} ({name})")
                continue
            rows.append(Spoken(recording, text, speaker=path.parents[1].name))
    notes = (
        [f"{where}: {len(missing)} transcripts without a recording left out: {first_few(missing, 5)}"]
        if missing
        else []
    )
    return table_of(rows, section, where), notes


def multilingual_librispeech(folder: Path, section: DataSection) -> Layout | None:
    """Recognize Multilingual LibriSpeech: transcripts.txt (id, tab, text) and audio/SPEAKER/BOOK/id.flac in train/."""
    found = sorted(path for path in folder.glob("*/transcripts.txt") if (path.parent / "audio").is_dir())
    if not found:
        return None
    return Layout("Multilingual LibriSpeech", {path.parent.name: partial(_mls_rows, path, section) for path in found})


def _mls_rows(path: Path, section: DataSection) -> tuple[Dataset, list[str]]:
    rows, missing = [], []
    for number, line in enumerate(read_lines(path), start=1):
        name, _, text = line.partition("\t")
        if not name.strip():
            continue
        speaker, book = [*name.split("_"), "", ""][:2]
        recording = recording_beside(path.parent / "audio" / speaker / book / name)
        if recording is None:
            missing.append(f"line {number} ({name})")
            continue
        rows.append(Spoken(recording, text.strip(), speaker=speaker))
    notes = (
        [f"{path}: {len(missing)} transcripts without a recording left out: {first_few(missing, 5)}"] if missing else []
    )
    return table_of(rows, section, path.parent.name), notes
