"""Return types of the layout readers: rows of recordings with transcripts, by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.core.errors import DataError
from sft_hf.data.loading.segments import cell_features

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.recipe.recipe import DataSection

AUDIO_ENDINGS = (
    *(
        ".wav",
        ".flac",
        ".mp3",
        ".ogg",
        ".opus",
        ".oga",
        ".m4a",
        ".aac",
        ".aif",
        ".aiff",
        ".au",
        ".amr",
        ".wma",
        ".webm",
    ),
    *(".mp4", ".mkv", ".mov", ".avi", ".3gp", ".caf", ".sph", ".w64"),
)

Read = Callable[[], tuple["Dataset", list[str]]]
"""Reads a split lazily; returns its rows, and notes on skipped items."""


@dataclass(frozen=True)
class Layout:
    """A folder with a known layout: the name of the layout, and the splits by name."""

    name: str
    splits: Mapping[str, Read]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Spoken:
    """A recording, or the part of it from `start` to `end` seconds, and its transcript."""

    path: Path
    text: str
    start: float | None = None
    end: float | None = None
    speaker: str | None = None


def table_of(rows: Sequence[Spoken], section: DataSection, where: str) -> Dataset:
    """Return the rows as a table: recording, transcript, and `speaker` if known. Raises DataError if there are none."""
    from datasets import Dataset, Features, Value

    if not rows:
        raise DataError(f"{where}: no recording with a transcript was found")
    features = {section.audio_column: Value("string"), section.transcription_column: Value("string")}
    cells: list[object] = [str(row.path) for row in rows]
    if any(row.start is not None or row.end is not None for row in rows):
        features[section.audio_column] = cell_features()
        cells = [{"path": str(row.path), "start": row.start, "end": row.end} for row in rows]
    columns = {section.audio_column: cells, section.transcription_column: [row.text for row in rows]}
    if any(row.speaker is not None for row in rows):
        features["speaker"] = Value("string")
        columns["speaker"] = [row.speaker for row in rows]
    return Dataset.from_dict(columns, Features(features))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without line ends. Raises DataError if it is not UTF-8 (or UTF-16)."""
    return read_text(path).splitlines()


def read_text(path: Path) -> str:
    """Return the content of a text file: UTF-16 if it has a byte order mark, else UTF-8. Raises DataError."""
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def recording_beside(stem: Path) -> Path | None:
    """Return the recording with this path and any audio extension; None if there is none."""
    return next((path for ending in AUDIO_ENDINGS if (path := stem.with_name(stem.name + ending)).is_file()), None)
