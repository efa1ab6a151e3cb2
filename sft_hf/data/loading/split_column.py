"""One table for all splits, with a column that names the split of each row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from datasets import Dataset

from sft_hf.data.columns import column_values
from sft_hf.data.loading.roles import Splits, choose, unused
from sft_hf.data.loading.split_names import SPLIT_COLUMNS, find_split, split_names

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection


def by_split_column(splits: Splits, section: DataSection, used: Collection[str | None]) -> Splits:
    """Return the splits named in a column of train, if there are no other splits and the column names a train split.

    `used`: columns with another meaning. Rows of splits without a role are dropped, with a note.
    """
    train = splits.by_role.get("train")
    if len(splits.by_role) != 1 or not isinstance(train, Dataset):
        return splits
    column = next((name for name in train.column_names if name in SPLIT_COLUMNS and name not in used), None)
    if column is None:
        return splits
    values = ["" if value is None else str(value).strip() for value in column_values(train, column)]
    names = sorted(set(values))
    known = [name for name in names if name in split_names(section)]
    if find_split(section.train_split, known) is None or len(known) < 2:
        return splits
    where = splits.where["train"]
    chosen, notes = choose(section, names, f"{where}, column {column!r}")
    counts = ", ".join(f"{name or 'empty'} {values.count(name)}" for name in names)
    notes = [f"{where}: the splits are those of the column {column!r}; rows: {counts}", *notes]
    by_role = {
        role: train.select([row for row, value in enumerate(values) if value == name]) for role, name in chosen.items()
    }
    places = {role: f"{where} [{name}]" for role, name in chosen.items()}
    return replace(splits, by_role=by_role, where=places, notes=[*splits.notes, *notes, *unused(chosen, names)])
