"""Hold rows out of train, and limit splits to fewer rows: pure functions of the labels and a seed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, IterableDataset

from sft_hf.core.errors import DataError
from sft_hf.data.groups import refuse_crossing, split_by_groups
from sft_hf.data.labels.label_map import is_multi_label
from sft_hf.data.labels.values import is_number
from sft_hf.data.loading.roles import ROLES, Splits

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

Seed = int | Sequence[int]

# One seed, independent streams.
_HOLD_OUT_STREAM = {"validation": 1, "test": 2}
_LIMIT_STREAM = {"train": 3, "validation": 4, "test": 5}


def stratified_split(
    labels: Sequence[Hashable] | None, n: int, fraction: float, seed: Seed
) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows 0 ... n - 1 into kept and held-out rows.

    `round(fraction * n)` rows are held out, in proportion to class sizes (largest remainders, ties broken at random).
    Every class keeps at least one row, so fewer rows may be held out. Without labels, or with unhashable ones (lists of
    a multi-label data set), rows are drawn regardless of class.

    Args:
        labels: one per row, or None.
        n: the number of rows.
        fraction: fraction of rows to hold out, 0 to 1.
        seed: non-negative integer, or a sequence of such integers.

    Returns:
        Two sorted int64 arrays that together contain every row once.
    """
    held_out = _draw(_groups(labels, n), n, round(fraction * n), seed, leave=1)
    return np.setdiff1d(np.arange(n, dtype=np.int64), held_out), held_out


def fill_missing_splits(
    splits: Splits, section: DataSection, strata: Callable[[Dataset], Sequence[Hashable] | None] | None = None
) -> Splits:
    """Hold validation and test out of train if they are missing and the section requests them.

    The fractions refer to the original train split; test is drawn first. Existing splits are not changed. `strata`
    returns the groups for stratification (None: no stratification); the default is one group per label. Raises
    DataError if a part would be empty or train would have fewer than two rows, for a stream without a validation split,
    and, with data.split_by, if given splits share values of that column.
    """
    by_role, where, notes = dict(splits.by_role), dict(splits.where), list(splits.notes)
    if section.split_by:
        refuse_crossing({role: data for role, data in by_role.items() if isinstance(data, Dataset)}, section.split_by)
    train = by_role["train"]
    total = len(train) if isinstance(train, Dataset) else 0
    for role in ("test", "validation"):
        fraction = getattr(section, f"{role}_fraction")
        if role in by_role or not fraction:
            continue
        train = by_role["train"]
        if isinstance(train, IterableDataset):
            notes.append(_note_for_stream(role))
            continue
        count = round(fraction * total)
        if not count or len(train) - count < 2:
            raise DataError(
                f"{where['train']}: holding {count} of {total} rows out of train for {role} leaves "
                f"{len(train) - count}, and {role} needs one row and train two; change data.{role}_fraction "
                f"({fraction:g}; 0 for none), or give a {role} split"
            )
        labels = label_groups(train, section.target_column) if strata is None else strata(train)
        seed = (section.split_seed, _HOLD_OUT_STREAM[role])
        if section.split_by:
            values = train.with_format(None)[section.split_by][:]
            kept, held_out = split_by_groups(values, labels, count, seed)
            if not len(held_out):
                raise DataError(
                    f"{where['train']}: no value of {section.split_by!r} (data.split_by) can be held out for {role}: "
                    f"train needs one, and a row of each label; give a {role} split, or set data.{role}_fraction: 0"
                )
        else:
            kept, held_out = stratified_split(labels, len(train), count / len(train), seed)
        if not len(held_out):
            raise DataError(
                f"{where['train']}: no label has two rows, so none can be held out for {role}; check "
                f"data.label_column, give a {role} split, or set data.{role}_fraction: 0{_if_numbers(labels)}"
            )
        by_role["train"], by_role[role] = train.select(kept), train.select(held_out)
        where[role] = f"{where['train']} {_held_out_for(role)}"
        manner = "at random" if labels is None else "stratified"
        if section.split_by:
            count = len(set(map(str, by_role[role].with_format(None)[section.split_by])))
            manner = f"all rows of {count} {'value' if count == 1 else 'values'} of {section.split_by!r}"
        notes.append(
            f"{role}: {len(held_out)} rows held out of train ({_share(len(held_out) / total, fraction)}, {manner}, "
            f"split_seed {section.split_seed}), because the data set has none"
        )
    return replace(splits, by_role={role: by_role[role] for role in ROLES if role in by_role}, where=where, notes=notes)


def held_out_roles(splits: Splits) -> list[str]:
    """Return the roles that `fill_missing_splits` took from train."""
    return [role for role, where in splits.where.items() if where.endswith(_held_out_for(role))]


def _held_out_for(role: str) -> str:
    return f"(held out for {role})"


def _share(real: float, wanted: float) -> str:
    """Return a share as a percentage, and the wanted one if it differs visibly.

    >>> _share(0.1003, 0.1), _share(9 / 60, 0.1)
    ('10 %', '15 %, wanted 10 %')
    """
    if abs(real - wanted) < 0.005:
        return f"{100 * wanted:g} %"
    return f"{100 * real:.{0 if real > 0.01 else 1}f} %, wanted {100 * wanted:g} %"


def _if_numbers(labels: Sequence[Any] | None) -> str:
    return "; to predict numbers, set task.problem_type: regression" if labels and all(map(is_number, labels)) else ""


def _note_for_stream(role: str) -> str:
    if role == "validation":
        raise DataError(
            "data.streaming: rows cannot be held out of a stream; give the data set a validation split, or set "
            "data.validation_fraction: 0"
        )
    return f"{role}: none, because rows cannot be held out of a stream"


def limit_splits(splits: Splits, section: DataSection) -> Splits:
    """Apply max_train_samples, max_validation_samples and max_test_samples; a stream is truncated."""
    by_role, notes = dict(splits.by_role), list(splits.notes)
    for role, data in splits.by_role.items():
        limit = getattr(section, f"max_{role}_samples")
        if limit is None:
            continue
        if isinstance(data, IterableDataset):
            by_role[role] = data.take(limit)
            notes.append(f"{role}: the first {limit} rows of the stream (max_{role}_samples)")
        elif limit < len(data):
            by_role[role] = limit_rows(data, limit, (section.split_seed, _LIMIT_STREAM[role]), section.target_column)
            notes.append(f"{role}: {limit} of {len(data)} rows, drawn by split_seed (max_{role}_samples)")
    return replace(splits, by_role=by_role, notes=notes)


def limit_rows(dataset: Dataset, limit: int | None, seed: Seed, label_column: str | None = None) -> Dataset:
    """Return `limit` random rows in their original order, stratified by class.

    Not the first rows: files are often sorted by label. Returns all rows if `limit` is None or at least their number.
    """
    if limit is None or limit >= len(dataset):
        return dataset
    groups = _groups(label_groups(dataset, label_column), len(dataset))
    return dataset.select(_draw(groups, len(dataset), limit, seed, leave=0))


def label_groups(dataset: Dataset, column: str | None) -> list[Any] | None:
    """Return one hashable label per row; None if the column is missing or contains lists."""
    if column is None or column not in dataset.column_names or is_multi_label(dataset, column):
        return None
    return dataset.with_format(None)[column][:]


def _groups(labels: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """Return the class of each row as an integer, in order of first appearance."""
    if labels is None:
        return np.zeros(n, dtype=np.int64)
    if len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} rows")
    numbers: dict[Hashable, int] = {}
    try:
        return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
    except TypeError:
        return np.zeros(n, dtype=np.int64)


def _draw(groups: np.ndarray, n: int, count: int, seed: Seed, leave: int) -> np.ndarray:
    """Draw `count` rows in proportion to group sizes, keeping `leave` rows of each group; sorted."""
    if not n:
        return np.empty(0, dtype=np.int64)
    # The raw output of PCG64 is guaranteed to stay the same across NumPy versions, unlike shuffle and choice.
    words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n + groups.max() + 1)
    keys, lots = words[:n], words[n:]
    order = np.lexsort((keys, groups))  # grouped, in random order within each group
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n) - np.repeat(starts, sizes)
    return np.flatnonzero(rank < _shares(sizes, count, sizes - leave, lots)[groups])


def _shares(sizes: np.ndarray, count: int, most: np.ndarray, lots: np.ndarray) -> np.ndarray:
    """Divide `count` among groups in proportion to `sizes`, at most `most` each; ties are broken by lot."""
    count = min(count, int(most.sum()))
    exact = sizes * count  # in units of 1 / sizes.sum(), which avoids rounding
    shares = np.minimum(exact // sizes.sum(), most)
    while (rest := count - int(shares.sum())) > 0:
        lacking = exact - shares * sizes.sum()
        open_groups = np.flatnonzero(shares < most)
        order = open_groups[np.lexsort((lots[open_groups], -lacking[open_groups]))]
        shares[order[:rest]] += 1
    return shares
