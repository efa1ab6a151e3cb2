"""Kaldi data folders: wav.scp, text, and optionally segments and utt2spk. Commands in wav.scp are never run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.loading.speech_layouts.rows import Layout, Spoken, read_lines, table_of

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.recipe.recipe import DataSection


def kaldi(folder: Path, section: DataSection) -> Layout | None:
    """Recognize a Kaldi data folder, or a folder with one for each split (possibly below `data`)."""
    if _is_data(folder):
        return Layout("Kaldi", {section.train_split: partial(_rows, folder, section)})
    for place in (folder, folder / "data"):
        found = sorted(path for path in place.iterdir() if _is_data(path)) if place.is_dir() else []
        if found:
            return Layout("Kaldi", {path.name: partial(_rows, path, section) for path in found})
    return None


def _is_data(folder: Path) -> bool:
    return (folder / "wav.scp").is_file() and (folder / "text").is_file()


def _rows(folder: Path, section: DataSection) -> tuple[Dataset, list[str]]:
    recordings = {name: _recording(folder, name, value) for name, value in _pairs(folder / "wav.scp").items()}
    segments = _segments(folder / "segments") if (folder / "segments").is_file() else None
    speakers = _pairs(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    rows, left_out = [], []
    for name, text in _pairs(folder / "text").items():
        source, start, end = (name, None, None) if segments is None else segments.get(name, ("", None, None))
        if source not in recordings:
            left_out.append(name)
            continue
        rows.append(Spoken(recordings[source], text, start, end, speakers.get(name)))
    notes = []
    if left_out:
        file = "wav.scp" if segments is None else "segments or wav.scp"
        notes.append(
            f"{folder / 'text'}: {len(left_out)} utterances that {file} lacks are left out: {first_few(left_out, 5)}"
        )
    return table_of(rows, section, str(folder)), notes


def _recording(folder: Path, name: str, value: str) -> Path:
    if value.endswith("|"):
        raise DataError(
            f"{folder / 'wav.scp'}: {name} is a command ({value[:60]}), and none is run; run it once, and name the "
            "file that it writes"
        )
    head, _, offset = value.rpartition(":")
    if head.endswith(".ark") and offset.isdigit():
        raise DataError(
            f"{folder / 'wav.scp'}: {name} is in an archive ({value[:60]}); write the recordings to separate files"
        )
    if Path(value).is_absolute():
        return Path(value)
    # Kaldi scripts run two or three levels above a data folder, and paths are relative to their working directory.
    places = [folder, *folder.resolve().parents[:3]]
    return next((place / value for place in places if (place / value).is_file()), folder / value)


def _pairs(path: Path) -> dict[str, str]:
    """Return {first word of a line: rest of the line}. Raises DataError if a first word occurs twice."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, *rest = line.strip().split(maxsplit=1)[:2] or [""]
        if not name:
            continue
        if name in found:
            raise DataError(f"{path}: line {number} repeats {name!r}; each has one line")
        found[name] = rest[0] if rest else ""
    return found


def _segments(path: Path) -> dict[str, tuple[str, float | None, float | None]]:
    found: dict[str, tuple[str, float | None, float | None]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            name, source, start, end = fields[:4]
            times = float(start), float(end)
        except ValueError:
            raise DataError(
                f"{path}: line {number} is not `utterance recording start end` with times in seconds"
            ) from None
        found[name] = source, times[0], None if times[1] < 0 else times[1]  # -1: to the end
    return found
