from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.loading.roles import Splits
from sft_hf.data.splits import fill_missing_splits, limit_rows, limit_splits, stratified_split


def section(**changes) -> DataSection:
    return DataSection(name="data", **changes)


def table(labels) -> Dataset:
    texts = [f"text {index}" for index in range(len(labels))]
    return Dataset.from_dict({"text": texts, "label": labels, "row_id": list(range(len(labels)))})


def splits(**by_role) -> Splits:
    return Splits(by_role, {role: f"{role}.csv" for role in by_role})


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_stratified_split_holds_its_promises(fraction):
    random = np.random.default_rng(0)
    for seed in range(20):
        n = int(random.integers(0, 300))
        labels = random.choice(list("abcdefgh"), n, p=np.array([50, 20, 10, 10, 5, 3, 1, 1]) / 100).tolist()
        sizes = Counter(labels)
        kept, held_out = stratified_split(labels, n, fraction, seed)
        assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(n))
        assert np.all(np.diff(kept) > 0) and np.all(np.diff(held_out) > 0)
        assert kept.dtype == held_out.dtype == np.int64
        assert len(held_out) == min(round(fraction * n), n - len(sizes))
        assert {labels[index] for index in kept} == set(sizes), "every class keeps a row"
        out = Counter(labels[index] for index in held_out)
        if len(held_out) == round(fraction * n) and fraction <= 0.5:
            singles = sum(size == 1 for size in sizes.values())
            for label, size in sizes.items():
                assert abs(out[label] - fraction * size) < 1.5 + singles
        again = stratified_split(list(labels), n, fraction, seed)
        assert np.array_equal(again[0], kept) and np.array_equal(again[1], held_out)


def test_stratified_split_exact_shares():
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    _, held_out = stratified_split(labels, 100, 0.2, 7)
    assert Counter(labels[index] for index in held_out) == {"a": 12, "b": 6, "c": 2}


def test_stratified_split_never_changes():
    """Fixed for good: another numpy must not reshuffle a run that is compared with an old one."""
    _, held_out = stratified_split(list("aabbbbccccdddddd") * 2, 32, 0.25, (42, 1))
    assert held_out.tolist() == [2, 8, 10, 17, 21, 22, 26, 27]


def test_seeds_matter_and_ties_go_by_lot():
    labels = [f"class {index % 150}" for index in range(1500)]
    drawn = [stratified_split(labels, 1500, 100 / 1500, seed)[1] for seed in range(30)]
    assert all(len(rows) == 100 and len({labels[index] for index in rows}) == 100 for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) == 30
    assert len({labels[index] for rows in drawn for index in rows}) == 150, "no class is always left out"


@pytest.mark.parametrize("labels", [None, [["a"], ["b"], []] * 100])
def test_without_usable_labels_the_draw_is_plain(labels):
    kept, held_out = stratified_split(labels, 300, 0.1, 0)
    assert len(held_out) == 30 and len(kept) == 270
    assert np.array_equal(held_out, stratified_split(None, 300, 0.1, 0)[1])


def test_labels_of_the_wrong_length_are_a_bug():
    with pytest.raises(ValueError, match="2 labels for 3 rows"):
        stratified_split(["a", "b"], 3, 0.5, 0)


def test_missing_splits_are_held_out_of_train():
    filled = fill_missing_splits(splits(train=table(["a", "b", "b", "b"] * 100)), section())
    assert list(filled.by_role) == ["train", "validation", "test"]
    assert {role: len(data) for role, data in filled.by_role.items()} == {"train": 320, "validation": 40, "test": 40}
    assert Counter(filled.by_role["validation"]["label"]) == {"a": 10, "b": 30}
    ids = [row for data in filled.by_role.values() for row in data["row_id"]]
    assert sorted(ids) == list(range(400))
    assert filled.where["test"] == "train.csv (held out for test)"
    assert filled.notes[1] == (
        "validation: 40 rows held out of train (10 %, stratified, split_seed 42), because the data set has none"
    )
    assert all(data.cache_files == [] for data in filled.by_role.values())


def test_test_rows_do_not_depend_on_the_validation_fraction():
    train = table(["a", "b"] * 200)
    one = fill_missing_splits(splits(train=train), section())
    other = fill_missing_splits(splits(train=train), section(validation_fraction=0.3))
    assert one.by_role["test"]["row_id"][:] == other.by_role["test"]["row_id"][:]
    assert len(other.by_role["validation"]) == 120
    assert (
        fill_missing_splits(splits(train=train), section(split_seed=1)).by_role["test"]["row_id"][:]
        != (one.by_role["test"]["row_id"][:])
    )


def test_existing_splits_are_not_touched():
    train, test = table(["a", "b"] * 50), table(["a", "b"])
    given = splits(train=train, test=test)
    filled = fill_missing_splits(given, section())
    assert filled.by_role["test"] is test and len(filled.by_role["validation"]) == 10
    assert given.by_role == {"train": train, "test": test} and given.notes == [], "the argument is left as it was"
    full = splits(train=train, validation=test, test=test)
    assert fill_missing_splits(full, section()).by_role == full.by_role


def test_a_fraction_of_zero_wants_no_split():
    filled = fill_missing_splits(splits(train=table(["a", "b"])), section(validation_fraction=0, test_fraction=0))
    assert list(filled.by_role) == ["train"] and filled.notes == []


@pytest.mark.parametrize("labels", [[["a"], ["b"]] * 50, ['["a"]', '["b"]'] * 50])
def test_multi_label_rows_are_drawn_at_random(labels):
    filled = fill_missing_splits(splits(train=table(labels)), section())
    assert len(filled.by_role["validation"]) == 10
    assert "(10 %, at random, split_seed 42)" in filled.notes[0]


@pytest.mark.parametrize(
    ("labels", "changes", "expected"),
    [
        (["a", "b"] * 2, {"test_fraction": 0}, "holding 0 of 4 rows out of train for validation"),
        (["a", "b"] * 2, {"validation_fraction": 0}, "holding 0 of 4 rows out of train for test"),
        (["a", "b"] * 5, {"test_fraction": 0.5, "validation_fraction": 0.5}, "holding 5 of 10 rows"),
        (["a"] * 3, {"test_fraction": 0.5}, "leaves 1,"),
        ([f"label {index}" for index in range(20)], {}, "no label has two rows, so none can be held out for test"),
    ],
)
def test_too_few_rows(labels, changes, expected):
    with pytest.raises(DataError) as error:
        fill_missing_splits(splits(train=table(labels)), section(**changes))
    assert expected in str(error.value) and str(error.value).startswith("train.csv: ")


def test_streams():
    stream, test = table(["a", "b"] * 10).to_iterable_dataset(), table(["a", "b"] * 10)
    with pytest.raises(DataError, match=r"data\.validation_fraction: 0"):
        fill_missing_splits(splits(train=stream, test=test), section())
    filled = fill_missing_splits(splits(train=stream), section(validation_fraction=0))
    assert list(filled.by_role) == ["train"] and "test: none" in filled.notes[0]
    assert fill_missing_splits(splits(train=stream, validation=test, test=test), section()).notes == []
    limited = limit_splits(splits(train=stream, test=test), section(max_train_samples=3, max_test_samples=4))
    assert [row["row_id"] for row in limited.by_role["train"]] == [0, 1, 2] and len(limited.by_role["test"]) == 4
    assert limited.notes[0] == "train: the first 3 rows of the stream (max_train_samples)"


def test_limit_rows():
    data = table(["a"] * 80 + ["b"] * 20)
    assert limit_rows(data, None, 0) is data and limit_rows(data, 100, 0) is data and limit_rows(data, 500, 0) is data
    for limit in (1, 5, 10, 50, 99):
        few = limit_rows(data, limit, 0, "label")
        assert len(few) == limit and few["row_id"][:] == sorted(few["row_id"][:])
        assert abs(Counter(few["label"])["b"] - 0.2 * limit) <= 1
        assert few["text"][0] == f"text {few['row_id'][0]}"
    assert limit_rows(data, 5, 0, "label")["row_id"][:] == limit_rows(data, 5, 0, "label")["row_id"][:]
    assert limit_rows(data, 5, 0, "label")["row_id"][:] != limit_rows(data, 5, 1, "label")["row_id"][:]
    assert len(limit_rows(table(["a", "b", "c"]), 2, 0, "label")) == 2, "fewer rows than labels"
    assert len(limit_rows(data, 7, 0)) == 7 and len(limit_rows(table([["a"]] * 9), 4, 0, "label")) == 4


def test_limits_by_role():
    given = splits(train=table(["a", "b"] * 50), validation=table(["a", "b"] * 5), test=table(["a", "b"] * 5))
    limited = limit_splits(given, section(max_train_samples=10, max_validation_samples=4, max_test_samples=10))
    assert {role: len(data) for role, data in limited.by_role.items()} == {"train": 10, "validation": 4, "test": 10}
    assert limited.notes == [
        "train: 10 of 100 rows, drawn by split_seed (max_train_samples)",
        "validation: 4 of 10 rows, drawn by split_seed (max_validation_samples)",
    ]
    assert len(given.by_role["train"]) == 100 and limited.where == given.where
