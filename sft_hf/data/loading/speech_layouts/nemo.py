"""NeMo manifests: JSON lines with `audio_filepath`, `text`, and optionally `offset` and `duration`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.data.loading.file_paths import FilePaths, resolved_paths
from sft_hf.data.loading.segments import with_segments
from sft_hf.data.loading.speech_layouts.rows import Layout
from sft_hf.data.tables.files import read_table

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.recipe.recipe import DataSection

PATH, TEXT = "audio_filepath", "text"
_MANIFEST = re.compile(r"[_.-]*manifests?[_.-]*", re.IGNORECASE)


def nemo(folder: Path, section: DataSection) -> Layout | None:
    """Recognize a folder of manifests named train_manifest.json, dev.jsonl, ..."""
    manifests = [
        path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".jsonl", ".ndjson") and _is_one(path)
    ]
    if not manifests:
        return None
    names = [_MANIFEST.sub("", path.stem) or section.train_split for path in manifests]
    if len(manifests) == 1 and section.train_split not in names:
        names = [section.train_split]
    return Layout(
        "NeMo manifest", {name: partial(_rows, path, section) for name, path in zip(names, manifests, strict=True)}
    )


def _is_one(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return f'"{PATH}"' in file.readline(1 << 16)
    except OSError:
        return False


def manifest_names(columns: Iterable[str], section: DataSection) -> dict[str, str]:
    """Return {current name: expected name} of the columns of a manifest; {} for other tables."""
    known = set(columns)
    if PATH not in known or section.audio_column in known:
        return {}
    renamed = {PATH: section.audio_column}
    if TEXT in known and section.transcription_column not in known:
        renamed[TEXT] = section.transcription_column
    return renamed


def _rows(path: Path, section: DataSection) -> tuple[Dataset, list[str]]:
    table = read_table(path)
    table = table.rename_columns(manifest_names(table.column_names, section))
    paths = FilePaths(path, section.file_prefix, section.file_suffix)
    table = resolved_paths(table, [section.audio_column], paths)
    table, notes = with_segments(table, section.audio_column, section, path.name)
    return table, paths.notes() + notes
