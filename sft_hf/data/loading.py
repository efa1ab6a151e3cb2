"""From a recipe's data section to the splits it names: a file, a folder, or a data set of the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from sft_hf.data import media
from sft_hf.data.archives import ARCHIVE, COMPRESSED, archive_members
from sft_hf.data.files import (
    TABLE_SUFFIXES,
    iter_rows,
    separator_hint,
    table_options,
    table_stem,
)
from sft_hf.data.hub import Data, hub_name, load_from_hub, refuse
from sft_hf.data.image_folders import image_layout, read_image_folder, refuse_flat
from sft_hf.data.split_choice import choose, split_names, unused
from sft_hf.data.split_files import Wanted, read_parts
from sft_hf.data.text_rows import check_texts, leave_out_bad_rows, leave_out_of_stream
from sft_hf.data.unpacking import holds_media, inner_folder, is_archive, only_archives, unpacked, unpacked_together
from sft_hf.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from sft_hf.data.preflight import Finding
    from sft_hf.recipe import DataSection
    from sft_hf.sources import Source

ROW_ID = "row_id"
"""Position of a row in its file or split, before anything was held out or left away.

Rows are counted from 0 everywhere, as pandas and `datasets` do: in messages, reports, predictions and outputs. Where a
message names a line of a text file instead, it says "line", counted from 1 as editors do."""

TEXT_KEYS = ("data.text_column", "data.text_pair_column")
"""Keys of a recipe that name a column of texts, which must not be empty."""

_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d+)-of-(?P<count>\d+)")


@dataclass(frozen=True)
class Splits:
    """The data of a run by role ("train", "validation", "test"; absent ones are absent).

    `where` says for messages where a role's rows come from: "train.csv" or "org/name [train]". `notes` are sentences
    about what was decided on the way, for the log; `findings` are about the data, for log, check and report. `revision`
    is the commit of a Hub data set; None where it is not known (streams) or there is none.
    """

    by_role: dict[str, Data]
    where: dict[str, str]
    notes: list[str] = field(default_factory=list)
    revision: str | None = None
    findings: list[Finding] = field(default_factory=list)


def load_splits(section: DataSection, source: Source, columns: Mapping[str, str]) -> Splits:
    """Load the splits that the data section names; nothing is held out or limited yet.

    `columns` maps the keys of the recipe that name a column to the columns, which have to be there.

    A file is train. A folder is read by `data_files`, else as what `save_to_disk` wrote, else by file names: train.csv,
    valid.jsonl, test-00000-of-00002.parquet, or train/metadata.csv where rows name files, else, for a task that reads
    images, as folders named after their classes (see `sft_hf.data.media`). A split may be missing
    where the section has the default name for it. Paths in a column of images or recordings are made absolute; nothing
    of these is decoded.
    Every whole split has a column `row_id` (see `ROW_ID`); one that the data brings along is replaced. With
    `streaming`, train is an IterableDataset without `row_id`; the others, which are scored as a whole, are read whole.

    Raises DataError for files, splits or columns that are missing or cannot be used, StorageError for the disk.
    """
    files = [column for key, column in columns.items() if key in media.MEDIA_KEYS]
    wanted = Wanted(tuple(files), () if files else _needed(section, columns))
    if source.path is None:
        by_name, commit = load_from_hub(section, source)
        loaded = replace(_by_name(section, by_name, source.name, hub_name(source)), revision=commit)
    elif source.path.is_dir():
        loaded = _from_folder(section, source.path, wanted, "data.image_column" in columns)
    elif files and is_archive(source.path) and holds_media(source.path):
        folder, notes = unpacked(source.path)
        loaded = _from_folder(section, folder, wanted, "data.image_column" in columns)
        loaded = replace(loaded, notes=notes + loaded.notes)
    elif _is_archive(source.path) and not files:
        loaded = _from_archive(section, source.path, wanted)
    elif section.data_files:
        raise DataError(f"data.data_files picks files of a folder, and {source.path} is a file; remove it")
    else:
        notes = []
        train = read_parts([source.path], section, "train", wanted, notes)
        loaded = Splits({"train": train}, {"train": source.path.name}, notes)
    by_role = {}
    texts = [column for key, column in columns.items() if key in TEXT_KEYS]
    for role, data in loaded.by_role.items():
        require_columns(data, _required(data, columns, role), loaded.where[role])
        by_role[role] = data if isinstance(data, IterableDataset) else _number(data, loaded.where[role])
        if texts:
            by_role[role] = _usable_texts(by_role[role], texts, section, loaded.where[role], loaded.notes)
    return replace(loaded, by_role=by_role)


def _needed(section: DataSection, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that a task on texts reads; no other can stop a run."""
    known = set(columns.values())
    for key in ("group_column", "split_by"):
        known |= {value} if isinstance(value := getattr(section, key, None), str) else set()
    for value in (section.label_column,):
        known |= set(value) if isinstance(value, list) else {value}
    return tuple(sorted(known))


def _usable_texts(data: Data, texts: Sequence[str], section: DataSection, where: str, notes: list[str]) -> Data:
    """Leave rows without a text out, or refuse the first: see `data.on_bad_row`."""
    if isinstance(data, IterableDataset):
        return data if section.on_bad_row == "stop" else leave_out_of_stream(data, texts, where)
    if section.on_bad_row == "stop":
        check_texts(data, texts, where)
        return data
    kept = leave_out_bad_rows(data, texts, where, notes)
    if not len(kept):
        raise DataError(f"{where}: no row can be used: {notes[-1]}")
    return kept


def _required(dataset: Data, columns: Mapping[str, str], role: str) -> Mapping[str, str]:
    """The columns that a split has to have: a test without any label column is unlabelled."""
    known = dataset.column_names or []
    labels = {key: column for key, column in columns.items() if key.startswith("data.label_column")}
    if role != "test" or any(column in known for column in labels.values()):
        return columns
    return {key: column for key, column in columns.items() if key not in labels}


def require_columns(dataset: Data, columns: Mapping[str, str], where: str) -> None:
    """Check that the columns are there. `columns` maps a key of the recipe, for the message, to a column.

    Raises DataError.
    """
    known = dataset.column_names
    if known is None:  # a stream that tells its columns only by its rows
        known = list(next(iter(dataset), {}))
    known = [name for name in known if name != ROW_ID]
    for key, column in columns.items():
        if column not in known:
            raise DataError(
                f"{where}: no column {column!r} ({key}); {separator_hint(known) or did_you_mean(column, known)}"
            )


def _number(dataset: Dataset, where: str) -> Dataset:
    if not len(dataset):
        raise DataError(f"{where}: holds no rows")
    dataset = dataset.with_format(None)
    if ROW_ID in dataset.column_names:
        dataset = dataset.remove_columns(ROW_ID)
    return dataset.add_column(ROW_ID, np.arange(len(dataset), dtype=np.int64))


# --- local files ---------------------------------------------------------------------------------------------


def _from_folder(section: DataSection, folder: Path, wanted: Wanted, images: bool) -> Splits:
    inner = inner_folder(folder) if wanted.files else None
    if section.data_files:
        there = inner is None or any(_glob(folder, pattern) for pattern in section.data_files.values())
        return _from_mapping(section, folder if there else inner or folder, section.data_files, wanted)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _from_saved(section, folder)
    files = wanted.files
    if inner is not None and section.train_split != inner.name:
        splits = _from_folder(section, inner, wanted, images)
        return replace(splits, notes=[f"{folder}: read from {inner.name} in it", *splits.notes])
    if files and (archives := only_archives(folder)):
        together, notes = unpacked_together(folder, archives)
        splits = _from_folder(section, together, wanted, images)
        return replace(splits, notes=notes + splits.notes)
    listing = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    groups: dict[str, list[Path]] = {}
    for name in listing:
        if (folder / name).is_file():
            _group(folder / name, groups)
    if files:
        groups |= {name: [table] for name, table in media.metadata_tables(folder, section.train_split).items()}
        for table in groups.get(section.train_split, []):
            if media.is_metadata(table) and table.parent == folder:
                return _from_one_table(section, folder, table, wanted)
    only = _only_table(groups, section) if files else None
    if only is not None and _has_columns(only, section, files[0]):
        return _from_one_table(section, folder, only, wanted)
    if images and section.train_split not in groups and (found := _from_image_folder(section, folder)):
        return found
    if only is not None:
        return _from_one_table(section, folder, only, wanted)
    if images and section.train_split not in groups:
        refuse_flat(folder, [table.name for group in groups.values() for table in group])
    held = did_you_mean("", listing).removeprefix("Valid: ")
    endings = ", ".join(suffix for suffix in TABLE_SUFFIXES if suffix not in COMPRESSED)
    beside = ", or a metadata.csv (file_name, transcription)" if files and not images else ""
    advice = f"; a split is a file named after it ({endings}){beside}, or see data.data_files; the folder holds: {held}"
    chosen, notes = choose(section, list(groups), str(folder), advice)
    return _read_groups(section, chosen, {name: groups[name] for name in chosen.values()}, notes, wanted)


def _group(path: Path, groups: dict[str, list[Path]]) -> None:
    """Put a table among the files of the split that it is called like."""
    stem = table_stem(path.name)
    if stem is None and _is_archive(path) and len(tables := _tables_in(path)) == 1:  # train.zip, train.csv.zip
        stem, path = table_stem(path.stem) or path.stem, tables[0]
    if stem is not None:
        shard = _SHARD.fullmatch(stem)
        groups.setdefault(shard["split"] if shard else stem, []).append(path)


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ARCHIVE and path.is_file()


def _tables_in(archive: Path) -> list[Path]:
    return [archive / name for name in sorted(archive_members(archive)) if table_stem(Path(name).name) is not None]


def _from_archive(section: DataSection, archive: Path, wanted: Wanted) -> Splits:
    """Read a zip archive as its tables lie in it: one is train, several are splits by their names."""
    if section.data_files:
        return _from_mapping(section, archive, section.data_files, wanted)
    tables = _tables_in(archive)
    if not tables:
        held = did_you_mean("", archive_members(archive)).removeprefix("Valid: ")
        raise DataError(f"{archive}: no table in the archive; it holds: {held}")
    groups: dict[str, list[Path]] = {}
    for path in tables:
        _group(path, groups)
    if len(groups) == 1 and section.train_split not in groups:
        groups = {"train": groups.popitem()[1]}
        section = section.model_copy(update={"train_split": "train"})
    advice = "; a split is a table of the archive named after it, or see data.data_files"
    chosen, notes = choose(section, list(groups), str(archive), advice)
    notes += unused(chosen, list(groups))
    splits = _read_groups(section, chosen, {name: groups[name] for name in chosen.values()}, notes, wanted)
    return replace(splits, where={role: f"{archive.name}/{where}" for role, where in splits.where.items()})


def _only_table(groups: Mapping[str, list[Path]], section: DataSection) -> Path | None:
    """The table of a folder that has but one, whatever its name, as long as it is no split's."""
    tables = [table for group in groups.values() for table in group]
    return tables[0] if len(tables) == 1 and not set(groups) & set(split_names(section)) else None


def _has_columns(table: Path, section: DataSection, files: str) -> bool:
    """Whether a table has the column of files and that of labels; else folders of classes come first."""
    try:
        names = next(iter_rows(table, batch_size=1, **table_options(section)), {})
    except DataError:
        return False
    return section.target_column in names and bool({files, media.FILE_NAME} & set(names))


def _from_one_table(section: DataSection, folder: Path, table: Path, wanted: Wanted) -> Splits:
    """One table above the files of all splits: a row belongs to the split in whose folder its file is, if to any.

    Where no file is in the folder of a split, all rows are train.
    """
    notes: list[str] = []
    files = wanted.files
    rows = read_parts([table], section.model_copy(update={"streaming": False}), "train", wanted, notes)
    by_folder = media.rows_by_folder(rows, files[0], folder) if files[0] in rows.column_names else {}
    if not set(by_folder) & set(split_names(section)):
        return _read_groups(section, {"train": section.train_split}, {section.train_split: [table]}, [], wanted)
    counts = ", ".join(f"{name} {len(chosen)}" for name, chosen in by_folder.items())
    notes.append(f"{table.name}: the splits are the folders that hold the files; rows: {counts}")
    for name in split_names(section):
        if name not in by_folder and (folder / name).is_dir():
            notes.append(f"not used: {folder / name}; {table.name} names no file in it")
    parts = {name: rows.select(chosen) for name, chosen in by_folder.items()}
    splits = _by_name(section, parts, table.name, f"{table}, whose files are in these folders")
    return replace(splits, notes=notes + splits.notes)


def _from_image_folder(section: DataSection, folder: Path) -> Splits | None:
    layout = image_layout(folder, section.train_split, split_names(section))
    if layout is None:
        return None
    found = layout.splits
    chosen, notes = ({"train": ""}, []) if "" in found else choose(section, list(found), str(folder))
    splits = Splits({}, {}, [*layout.notes, *notes, *unused(chosen, list(found))])
    classes: list[str] = []
    for role, name in chosen.items():
        may_be_unlabelled = classes if role == "test" else None
        table, left_out = read_image_folder(found[name], section.image_column, section.target_column, may_be_unlabelled)
        classes = classes or getattr(table.features[section.target_column], "names", [])
        splits.notes.extend(left_out)
        splits.by_role[role] = table.to_iterable_dataset() if section.streaming and role == "train" else table
        splits.where[role] = f"{folder.name}/{name}".rstrip("/")
    return splits


def _from_mapping(section: DataSection, folder: Path, data_files: Mapping[str, str], wanted: Wanted) -> Splits:
    chosen, notes = choose(section, list(data_files), "data.data_files")
    groups = {}
    for name in chosen.values():
        pattern = data_files[name]
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise DataError(f"data.data_files: {name}: {pattern!r} is not inside {folder}; name a file of that folder")
        found = _glob(folder, pattern)
        if not found:
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            raise DataError(f"data.data_files: {name}: no file {pattern!r} in {folder}; {did_you_mean(pattern, files)}")
        groups[name] = found
    return _read_groups(section, chosen, groups, notes + unused(chosen, list(data_files)), wanted, ordered=True)


def _glob(folder: Path, pattern: str) -> list[Path]:
    if _is_archive(folder):
        return [folder / name for name in sorted(archive_members(folder)) if name == pattern or fnmatch(name, pattern)]
    if (folder / pattern).is_file():  # a name may hold characters that mean something in a pattern
        return [folder / pattern]
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except ValueError:  # no valid pattern, such as a**b
        return []


def _read_groups(
    section: DataSection,
    chosen: Mapping[str, str],
    groups: Mapping[str, list[Path]],
    notes: list[str],
    wanted: Wanted,
    ordered: bool = False,
) -> Splits:
    splits = Splits({}, {}, notes)
    for role, name in chosen.items():
        paths = groups[name] if ordered else _check_shards(name, groups[name])
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        splits.by_role[role] = read_parts(paths, section, role, wanted, splits.notes)
        # metadata.csv is every split's name for its table
        place = paths[0].parent.name + "/" if table_stem(paths[0].name) == media.METADATA else ""
        splits.where[role] = place + paths[0].name + more
    return splits


def _check_shards(name: str, paths: list[Path]) -> list[Path]:
    """Return the files of a split in order. Raises DataError if they are rivals, or if a shard is missing."""
    shards = [_SHARD.fullmatch(table_stem(path.name) or "") for path in paths]
    if len(paths) == 1 and shards[0] is None:
        return paths
    names = ", ".join(path.name for path in paths)
    numbers = sorted((int(shard["index"]), int(shard["count"])) for shard in shards if shard)
    if len(numbers) < len(paths) or len({path.suffix for path in paths}) > 1:
        raise DataError(
            f"{paths[0].parent}: several files for the split {name!r} ({names}); say which by data.data_files"
        )
    if numbers != [(index, len(paths)) for index in range(len(paths))]:
        raise DataError(f"{paths[0].parent}: shards of {name!r} are missing or mixed; there is only {names}")
    return [path for _, path in sorted(zip((int(shard["index"]) for shard in shards if shard), paths, strict=True))]


def _from_saved(section: DataSection, folder: Path) -> Splits:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        refuse(error, f"{folder}: what save_to_disk wrote here cannot be read")
    by_name = dict(saved) if isinstance(saved, datasets.DatasetDict) else {section.train_split: saved}
    return _by_name(section, by_name, folder.name, str(folder))


def _by_name(section: DataSection, by_name: Mapping[str, Data], short: str, what: str) -> Splits:
    chosen, notes = choose(section, list(by_name), what)
    splits = Splits({}, {}, notes + unused(chosen, list(by_name)))
    for role, name in chosen.items():
        data = media.undecoded(by_name[name])
        splits.where[role] = f"{short} [{name}]"
        if section.streaming and role == "train":
            splits.by_role[role] = data.to_iterable_dataset() if isinstance(data, Dataset) else data
        else:
            splits.by_role[role] = data if isinstance(data, Dataset) else Dataset.from_list(list(data), data.features)
    return splits
