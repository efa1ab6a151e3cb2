"""The files of one split as one set of rows, in memory or streamed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset

from sft_hf.core.errors import DataError
from sft_hf.data.loading import media
from sft_hf.data.loading.file_paths import FilePaths, resolved_paths
from sft_hf.data.loading.hub import Data
from sft_hf.data.loading.segments import segment_names, with_segments
from sft_hf.data.loading.speech_layouts.nemo import manifest_names
from sft_hf.data.tables.files import iter_rows, read_table, table_features, table_options

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

log = logging.getLogger("sft_hf")


@dataclass(frozen=True)
class Wanted:
    """What to read from tables: `files` are path columns, `keep` the columns to read (empty: all)."""

    files: tuple[str, ...]
    keep: tuple[str, ...]


def read_parts(paths: list[Path], section: DataSection, role: str, wanted: Wanted, notes: list[str]) -> Data:
    """Read the parts of a split; paths in file columns are relative to the folder of the part.

    `notes` receives the choices made. Raises DataError, StorageError.
    """
    options, files = table_options(section), wanted.files
    if section.streaming and role == "train":
        if reads_recordings(section, files):
            _refuse_segments(paths[0], section, options)
        features = [_name_features(_features(path, wanted, options), section, files) for path in paths]
        if any(other != features[0] for other in features):
            raise DataError(f"{paths[0]} and its other parts differ in their columns; one split needs the same in all")
        fixes = (section.file_prefix, section.file_suffix)
        first = next(iter_rows(paths[0], batch_size=1, keep=wanted.keep, **options), {})
        names = {"paths": [str(path) for path in paths], "options": options, "wanted": wanted, "fixes": fixes}
        names["other"] = _other_names(list(first), section, files)
        return media.undecoded(IterableDataset.from_generator(_stream, features=features[0], gen_kwargs=names))
    parts = []
    for path in paths:
        resolver = FilePaths(path, section.file_prefix, section.file_suffix)
        table = media.undecoded(_name_files(_read(path, wanted, options, notes), section, files))
        table = resolved_paths(table, files, resolver)
        if reads_recordings(section, files):
            table, said = with_segments(table, section.audio_column, section, path.name)
            notes += said
        parts.append(table)
        notes += resolver.notes()
    for path, part in zip(paths, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise DataError(
                f"{path}: columns {', '.join(part.column_names)}, but {paths[0].name} has "
                f"{', '.join(parts[0].column_names)}; parts of one split need the same columns"
            )
    try:
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except (ValueError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{paths[0]} and its other parts do not fit together: {reason}") from error


def _read(path: Path, wanted: Wanted, options: Mapping[str, Any], notes: list[str]) -> Dataset:
    """Read the required columns of a table; if one is missing, read all columns, so that a message can list them."""
    found: list[str] = []
    table = read_table(path, keep=wanted.keep, notes=found, **options)
    if not set(wanted.keep) <= set(table.column_names):
        found = []
        table = read_table(path, keep=(), notes=found, **options)
    notes += [note for note in found if note not in notes]
    return table


def _features(path: Path, wanted: Wanted, options: Mapping[str, Any]) -> datasets.Features | None:
    features = table_features(path, wanted.keep, **options)
    if features is None or set(wanted.keep) <= set(features):
        return features
    return table_features(path, **options)


def reads_recordings(section: DataSection, files: Sequence[str]) -> bool:
    """Whether the file columns are recordings."""
    return bool(files) and section.audio_column in files and section.image_column not in files


def _other_names(names: Sequence[str], section: DataSection, files: Sequence[str]) -> dict[str, str]:
    """Return {current name: expected name} of the columns that tasks know by another name."""
    manifest = manifest_names(names, section) if reads_recordings(section, files) else {}
    return manifest or media.file_column(names, files)


def _name_files(table: Dataset, section: DataSection, files: Sequence[str]) -> Dataset:
    return table.rename_columns(_other_names(table.column_names, section, files))


def _name_features(
    features: datasets.Features | None, section: DataSection, files: Sequence[str]
) -> datasets.Features | None:
    if features is None:
        return None
    other = _other_names(list(features), section, files)
    return datasets.Features({other.get(name, name): feature for name, feature in features.items()})


def _refuse_segments(path: Path, section: DataSection, options: dict[str, Any]) -> None:
    """Parts of recordings cannot be streamed: the whole recording would be read for each part."""
    columns = list(next(iter_rows(path, batch_size=1, **options), {}))
    if found := segment_names(columns, section, path.name):
        raise DataError(
            f"{path}: data.streaming does not read parts of recordings (column {found.start!r}); set data.streaming: "
            "false, or data.segment_columns: none if each file is one row"
        )


def _stream(
    paths: list[str], options: dict[str, Any], wanted: Wanted, fixes: tuple[str, str], other: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for path in paths:
        notes: list[str] = []
        resolver = FilePaths(Path(path), *fixes)
        for batch in iter_rows(path, keep=wanted.keep, notes=notes, **options):
            batch = {other.get(name, name): values for name, values in batch.items()}
            names = list(batch)
            for column in set(wanted.files) & set(names):
                batch[column] = [resolver.path(value) for value in batch[column]]
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))
        for note in notes:
            log.info("%s", note)
