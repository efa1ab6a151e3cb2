"""Rows in memory as the splits of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datasets import Dataset, Value

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.loading.file_paths import NEW, URL
from sft_hf.data.loading.loading import checked
from sft_hf.data.loading.media import MEDIA_KEYS, undecoded
from sft_hf.data.loading.roles import ROLES, Splits
from sft_hf.data.loading.segments import with_segments
from sft_hf.data.loading.split_files import reads_recordings

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection


def splits_in_memory(section: DataSection, given: Mapping[str, Dataset], columns: Mapping[str, str]) -> Splits:
    """Return splits in memory, by role, in the form of `load_splits`: checked, numbered, not decoded.

    An existing column `row_id` of distinct non-negative integers is kept, so that rows of a fold keep the numbers of
    the whole data set. Paths of images and recordings are relative to the working directory.

    Raises DataError for unusable roles, columns or rows.
    """
    if unknown := sorted(set(given) - set(ROLES)):
        raise DataError(f"splits: no role {unknown[0]!r}; {did_you_mean(unknown[0], ROLES)}")
    if "train" not in given:
        raise DataError("splits: there is no 'train', the rows to learn from")
    files = [column for key, column in columns.items() if key in MEDIA_KEYS]
    loaded = Splits({}, {})
    for role in ROLES:
        if role not in given:
            continue
        if not isinstance(given[role], Dataset):
            raise DataError(f"splits[{role!r}] has to be a datasets.Dataset, and is a {type(given[role]).__name__}")
        loaded.where[role] = where = f"{role} (in memory)"
        table = _absolute(undecoded(given[role]), files, section)
        if reads_recordings(section, files):
            table, notes = with_segments(table, section.audio_column, section, where)
            loaded.notes.extend(notes)
        loaded.by_role[role] = table
    return checked(loaded, section, columns, keep_row_ids=True)


def _absolute(table: Dataset, columns: Sequence[str], section: DataSection) -> Dataset:
    """Return the table with absolute paths in these columns; other values are unchanged."""
    for column in columns:
        feature = table.features.get(column)
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
            paths = [
                os.path.abspath(f"{section.file_prefix}{cell}{section.file_suffix}")
                if cell and not URL.match(cell)
                else cell
                for cell in table.with_format(None)[column]
            ]
            # Added before removing the old one: a table without columns has no rows.
            table = table.add_column(NEW, paths).remove_columns(column).rename_column(NEW, column)
    return table
