"""Numbers as files write them, and what is not one."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sft_hf.core.errors import DataError
from sft_hf.data.labels.targets import (
    Missing,
    check_spread,
    check_targets,
    parse_number,
    parse_numbers,
    quintiles,
    read_targets,
    target_names,
)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("3.200", 3.2),
        (" 1e-3 ", 0.001),
        ("+.5", 0.5),
        ("-7.", -7.0),
        ("2E+2", 200.0),
        (4, 4.0),
        (0.25, 0.25),
        (Decimal("1.10"), 1.1),
        ("0007", 7.0),
    ],
)
def test_numbers_are_read_as_they_are_written(value, number):
    assert parse_number(value) == number


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), "NaN", "n/a", "None", "-"])
def test_what_is_missing_is_missing(value):
    with pytest.raises(Missing, match="missing"):
        parse_number(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("3,5", "comma"),
        ("1,234.5", "comma"),
        ("inf", "too large"),
        (float("-inf"), "too large"),
        ("1e40", "too large"),
        (10**400, "too large"),
        ("four", "'four' is not a number"),
        ("1_000", "not a number"),
        ("50 %", "not a number"),
        ("٣", "not a number"),
        (True, "not a number"),
        ([1.0, 2.0], "a list"),
    ],
)
def test_what_is_no_number_is_refused_by_its_value(value, words):
    with pytest.raises(DataError, match=words) as caught:
        parse_number(value)
    assert not isinstance(caught.value, Missing)


@pytest.mark.parametrize("value", [[1, "2.5"], "[1, 2.5]", "[1.  2.5]", "[ 1 2.5 ]", (1.0, 2.5)])
def test_lists_of_numbers(value):
    assert parse_numbers(value) == [1.0, 2.5]


@pytest.mark.parametrize(("value", "words"), [("[1, 2", "does not end"), ([1.0, None], "missing"), ("[]", "empty")])
def test_lists_that_are_none(value, words):
    with pytest.raises(DataError, match=words):
        parse_numbers(value)


def read(values, **options):
    return read_targets(Dataset.from_dict({"y": values, "row_id": range(10, 10 + len(values))}), "y", **options)


def test_rows_are_named_and_counted():
    found = read(["1", "", "x", "4"])
    assert found.values.tolist() == [[1.0], [4.0]] and found.rows == [0, 3]
    with pytest.raises(DataError, match=r"train.csv row 11 .*'y'.* missing.* 2 of 4 rows.*on_bad_row: skip"):
        check_targets(found, "y", "train.csv", skip=False)
    (note,) = check_targets(found, "y", "train.csv", skip=True)
    assert "2 of 4 rows skipped" in note and "row 12" in note


def test_a_column_of_text_is_refused_as_a_whole():
    with pytest.raises(DataError, match=r"row 10.*none of the 2 rows.*label_column"):
        check_targets(read(["good", "bad"]), "y", "a.csv", skip=True)


def test_rows_of_other_lengths_are_refused():
    found = read([[1.0, 2.0], [3.0], [4.0, 5.0]])
    assert [problem[0] for problem in found.problems] == [11] and "1 targets" in found.problems[0][1]
    assert read([[1.0, 2.0]], width=3).problems


def test_a_split_without_any_target_is_told_apart():
    assert read([None, None]).all_missing
    assert not read(["", "x"]).all_missing and not read([None, 1.0]).all_missing


def test_class_names_are_read_by_their_names():
    features = Features({"y": ClassLabel(names=["2.5", "0.5"])})
    assert read_targets(Dataset.from_dict({"y": [0, 1, 0]}, features), "y").values[:, 0].tolist() == [2.5, 0.5, 2.5]
    features = Features({"y": ClassLabel(names=["good", "bad"])})
    assert "'good'" in read_targets(Dataset.from_dict({"y": [0, 1]}, features), "y").problems[0][1]


def test_streams_are_read_to_their_end():
    stream = Dataset.from_dict({"y": ["1", "2", None]}, Features({"y": Value("string")})).to_iterable_dataset()
    found = read_targets(stream, "y")
    assert found.values[:, 0].tolist() == [1.0, 2.0] and found.problems[0][0] == 2


def test_what_does_not_vary_is_refused():
    check_spread(np.array([[1.0], [1.5]]), ["y"], "train")
    with pytest.raises(DataError, match="'y' is 3 in every row"):
        check_spread(np.array([[3.0], [3.0]]), ["y"], "train")
    with pytest.raises(DataError, match=r"'b'.*float32"):
        check_spread(np.array([[1.0, 1e9], [2.0, 1e9 + 1]]), ["a", "b"], "train")


def test_names_of_targets():
    assert target_names("score", None, 1) == ["score"]
    assert target_names("score", None, 2) == ["score_0", "score_1"]
    assert target_names(["a", "b"], None, 2) == ["a", "b"]
    assert target_names("score", ["valence", "arousal"], 2) == ["valence", "arousal"]
    with pytest.raises(DataError, match=r"label_names has 2 names.* 3 targets"):
        target_names("score", ["a", "b"], 3)
    with pytest.raises(DataError, match="twice"):
        target_names("score", ["a", "a"], 2)


def test_fifths():
    assert quintiles(np.arange(10.0)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
