"""Loading of the splits that a recipe's data section names: from a file, a folder or the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, IterableDataset, Value

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.columns import column_values
from sft_hf.data.loading import media
from sft_hf.data.loading.folders import from_archive, from_folder, from_layout, is_zip
from sft_hf.data.loading.hub import Data, hub_name, load_from_hub
from sft_hf.data.loading.roles import ROW_ID, Splits, by_name
from sft_hf.data.loading.speech_layouts.recognise import table_layout
from sft_hf.data.loading.split_column import by_split_column
from sft_hf.data.loading.split_files import Wanted, read_parts, reads_recordings
from sft_hf.data.loading.text_rows import check_texts, leave_out_bad_rows, leave_out_of_stream
from sft_hf.data.loading.unpacking import holds_media, is_archive, unpacked
from sft_hf.data.tables.files import separator_hint

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection
    from sft_hf.core.sources.sources import Source

TEXT_KEYS = ("data.text_column", "data.text_pair_column")
"""Recipe keys of text columns, which must not be empty."""


def load_splits(section: DataSection, source: Source, columns: Mapping[str, str]) -> Splits:
    """Load the splits that the data section names; no rows are held out or limited yet.

    `columns` is {recipe key: column} of the required columns.

    A file is train. A folder is read by `data_files`; else as the output of `save_to_disk`; else by file names:
    train.csv, valid.jsonl, test-00000-of-00002.parquet, or train/metadata.csv if rows refer to files; else, for image
    tasks, as class folders (see `sft_hf.data.loading.image_folders`). A split may be missing if the section has its
    default name. Paths in a column of images or recordings are made absolute; the files are not decoded.
    Every split except a stream has a column `row_id` (see `ROW_ID`), which replaces an existing one. With `streaming`,
    train is an IterableDataset without `row_id`; the other splits are read completely for scoring.

    Raises DataError for missing or unusable files, splits or columns, StorageError for disk errors.
    """
    files = [column for key, column in columns.items() if key in media.MEDIA_KEYS]
    wanted = Wanted(tuple(files), () if files else _needed(section, columns))
    if source.path is None:
        found, commit = load_from_hub(section, source)
        loaded = replace(by_name(section, found, source.name, hub_name(source)), revision=commit)
    elif source.path.is_dir():
        loaded = from_folder(section, source.path, wanted, "data.image_column" in columns)
    elif reads_recordings(section, files) and (layout := table_layout(source.path, section)):
        loaded = from_layout(section, source.path.parent, layout)
    elif files and is_archive(source.path) and holds_media(source.path):
        folder, notes = unpacked(source.path)
        loaded = from_folder(section, folder, wanted, "data.image_column" in columns)
        loaded = replace(loaded, notes=notes + loaded.notes)
    elif is_zip(source.path) and not files:
        loaded = from_archive(section, source.path, wanted)
    elif section.data_files:
        raise DataError(f"data.data_files picks files of a folder, and {source.path} is a file; remove it")
    else:
        notes = []
        train = read_parts([source.path], section, "train", wanted, notes)
        loaded = Splits({"train": train}, {"train": source.path.name}, notes)
    if source.served_by == "mirror":
        loaded = replace(loaded, revision=source.revision)
    return checked(loaded, section, columns)


def checked(loaded: Splits, section: DataSection, columns: Mapping[str, str], *, keep_row_ids: bool = False) -> Splits:
    """Return the splits with verified columns, numbered rows and usable texts. Raises DataError.

    `keep_row_ids`: keep existing row numbers, see `sft_hf.data.loading.memory`.
    """
    by_role = {}
    texts = [column for key, column in columns.items() if key in TEXT_KEYS]
    for role, data in loaded.by_role.items():
        require_columns(data, _required(data, columns, role), loaded.where[role])
        if isinstance(data, Dataset):
            data = _number(data, loaded.where[role], keep=keep_row_ids)
        by_role[role] = data
        if texts:
            by_role[role] = _usable_texts(by_role[role], texts, section, loaded.where[role], loaded.notes)
    meant = {*columns.values(), section.group_column, section.split_by, *section.label_columns.values()}
    return by_split_column(replace(loaded, by_role=by_role), section, meant)


def _needed(section: DataSection, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns that a text task reads; other columns cannot make a run fail."""
    known = set(columns.values())
    for key in ("group_column", "split_by"):
        known |= {value} if isinstance(value := getattr(section, key, None), str) else set()
    for value in (section.label_column,):
        known |= set(value) if isinstance(value, list) else {value}
    return tuple(sorted(known))


def _usable_texts(data: Data, texts: Sequence[str], section: DataSection, where: str, notes: list[str]) -> Data:
    """Remove rows without a text, or raise for the first one: see `data.on_bad_row`."""
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
    """Return the columns that a split must have: a test split without label columns is unlabeled."""
    known = dataset.column_names or []
    labels = {key: column for key, column in columns.items() if key.startswith("data.label_column")}
    if role != "test" or any(column in known for column in labels.values()):
        return columns
    return {key: column for key, column in columns.items() if key not in labels}


def require_columns(dataset: Data, columns: Mapping[str, str], where: str) -> None:
    """Check that the columns exist. `columns` is {recipe key, for the message: column}.

    Raises DataError.
    """
    known = dataset.column_names
    if known is None:  # a stream whose columns are only known from its rows
        known = list(next(iter(dataset), {}))
    known = [name for name in known if name != ROW_ID]
    headless = len(columns) > 1 and not any(column in known for column in columns.values())
    for key, column in columns.items():
        if column not in known:
            hint = separator_hint(known) or did_you_mean(column, known)
            if set(parts := [part.strip() for part in column.split(",")]) <= set(known):
                hint = f"for a column for each label, write data.label_column=[{', '.join(parts)}]"
            elif headless and hint.startswith("Valid"):
                hint += "; if these are the first row, as the file has no header, set data.column_names"
            raise DataError(f"{where}: no column {column!r} ({key}); {hint}")


def _number(dataset: Dataset, where: str, *, keep: bool) -> Dataset:
    if not len(dataset):
        raise DataError(f"{where}: holds no rows")
    dataset = dataset.with_format(None)
    if ROW_ID in dataset.column_names:
        if keep and _are_row_ids(dataset):
            return dataset
        dataset = dataset.remove_columns(ROW_ID)
    return dataset.add_column(ROW_ID, np.arange(len(dataset), dtype=np.int64))


def _are_row_ids(dataset: Dataset) -> bool:
    """Whether an existing column `row_id` numbers the rows: distinct non-negative integers."""
    feature = dataset.features[ROW_ID]
    if not (isinstance(feature, Value) and feature.dtype == "int64"):
        return False
    numbers = list(column_values(dataset, ROW_ID))
    return None not in numbers and min(numbers) >= 0 and len(set(numbers)) == len(numbers)
