"""Tables that a program holds in memory: every kind gives the same rows, and what cannot be used is named."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.in_memory.splits import as_dataset, as_splits

ROWS = [{"review": "good", "stars": 5}, {"review": "bad", "stars": 1}, {"review": "fair", "stars": 3}]
SECTION = DataSection(name="memory", text_column="review", label_column="stars")
COLUMNS = {"data.text_column": "review", "data.label_column": "stars"}


def read(data, where="train", section=SECTION):
    return as_dataset(data, where, section, COLUMNS)


class Foreign:
    """A table of a library that nobody knows, by the protocol that such libraries share."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Interchangeable:
    """The same by the older protocol."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        return self.table.__dataframe__(nan_as_null, allow_copy)


KINDS = {
    "pandas": pd.DataFrame(ROWS),
    "pandas, text as objects": pd.DataFrame(ROWS).astype({"review": object}),
    "pandas, text in the index": pd.DataFrame(ROWS).set_index("review"),
    "polars": pl.DataFrame(ROWS),
    "dataset": Dataset.from_list(ROWS),
    "arrow": pa.Table.from_pylist(ROWS),
    "record batch": pa.RecordBatch.from_pylist(ROWS),
    "dicts": ROWS,
    "lists": {"review": ["good", "bad", "fair"], "stars": [5, 1, 3]},
    "numpy": OrderedDict(review=np.array(["good", "bad", "fair"]), stars=np.array([5, 1, 3])),
    "series": {"review": pd.Series(["good", "bad", "fair"], index=[7, 8, 9]), "stars": (5, 1, 3)},
    "arrow stream": Foreign(pa.Table.from_pylist(ROWS)),
    "interchange": Interchangeable(pa.Table.from_pylist(ROWS)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(kind):
    assert read(KINDS[kind]).select_columns(["review", "stars"]).to_list() == ROWS


def test_only_what_is_needed_is_read():
    frame = pd.DataFrame(ROWS).assign(junk=[object(), 1, "x"], split=["train", "test", "train"], speaker=list("aba"))
    section = SECTION.model_copy(update={"split_by": "speaker"})
    assert set(read(frame, section=section).column_names) == {"review", "stars", "split", "speaker"}


def test_the_names_of_all_columns_where_one_is_missing():
    table = read([{"reviews": "good", "stars": 5, "junk": object()}])
    assert table.column_names == ["reviews", "stars", "junk"] and table["junk"][:] == [None]


def test_columns_without_names():
    section = DataSection(name="memory", text_column="0", label_column="1")
    columns = {"data.text_column": "0", "data.label_column": "1"}
    for data in (pd.DataFrame([["good", 5]]), [{0: "good", 1: 5}], {0: ["good"], 1: [5]}):
        assert as_dataset(data, "train", section, columns).to_list() == [{"0": "good", "1": 5}]


def test_own_row_ids_are_dropped():
    assert "row_id" not in read(Dataset.from_list([{**row, "row_id": 9} for row in ROWS])).column_names


@pytest.mark.parametrize(
    "values",
    [[1, None, 2], [1.0, np.nan, 2.0], np.array([1.0, np.nan, 2.0]), pd.array([1, pd.NA, 2], dtype="Int64")],
)
def test_missing_numbers(values):
    held = read({"review": ["a", "b", "c"], "stars": values})["stars"][:]
    assert [held[0], held[2]] == [1, 2] and (held[1] is None or np.isnan(held[1]))


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, pd.NaT])
def test_missing_texts(nothing):
    assert read(pd.DataFrame({"review": ["a", nothing], "stars": [1, 2]}))["review"][:] == ["a", None]
    assert read([{"review": "a", "stars": 1}, {"review": nothing, "stars": 2}])["review"][:] == ["a", None]
    assert read([{"review": "a", "stars": 1}, {"stars": 2}])["review"][:] == ["a", None]


def test_cells_of_other_libraries():
    rows = [{"review": np.str_("a"), "stars": (np.int64(1), 2)}, {"review": "b", "stars": {2}}]
    assert read(rows)["stars"][:] == [[1, 2], [2]]
    assert read({"review": ["a"], "stars": [np.array([0, 1])]})["stars"][:] == [[0, 1]]


def categorical(names, ordered):
    return pd.Series(pd.Categorical(["high", "low", None], categories=names, ordered=ordered))


def test_an_ordered_categorical_keeps_its_order():
    frame = pd.DataFrame({"review": list("abc"), "stars": categorical(["low", "middle", "high"], ordered=True)})
    table = read(frame)
    assert table.features["stars"] == ClassLabel(names=["low", "high"])
    assert table["stars"][:] == [1, 0, None]
    enum = pl.DataFrame({"review": ["a", "b"], "stars": pl.Series(["x", "w"], dtype=pl.Enum(["x", "w"]))})
    assert read(enum).features["stars"] == ClassLabel(names=["x", "w"])


def test_other_categoricals_are_their_values():
    frame = pd.DataFrame({"review": list("abc"), "stars": categorical(["low", "high"], ordered=False)})
    assert read(frame)["stars"][:] == ["high", "low", None]
    series = pl.Series(["x", "w"], dtype=pl.Categorical)
    assert read(pl.DataFrame({"review": ["a", "b"], "stars": series}))["stars"][:] == ["x", "w"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pd.DataFrame({"review": ["a", 3.5], "stars": [1, 2]}), "train: column 'review'|row 0|row 1"),
        ([{"review": "a", "stars": 1}, {"review": "b", "stars": "one"}], "train: column 'stars'|row 0|row 1"),
        ([{"review": "a", "stars": 1}, "b"], "train row 1|str"),
        ([{"review": "a", "stars": 1}, {"review": "\ud800", "stars": 1}], "train row 1|'review'"),
        ([{"review": "a", "stars": 1}, {"review": "b", "stars": 2**80}], "train row 1|'stars'"),
        ({"review": ["a"], "stars": [1, 2]}, "'stars' has 2 values|'review' has 1"),
        ({"review": "a", "stars": [1]}, "'review'|list"),
        (pd.concat([pd.DataFrame(ROWS)] * 2, axis=1), "2 columns 'review'"),
        (pl.DataFrame(ROWS).lazy(), "LazyFrame|collect"),
        (iter(ROWS), "list(train)"),
        (3, "int|DataFrame"),
        (IterableDataset.from_generator(lambda: iter(ROWS)), "IterableDataset|streaming"),
    ],
)
def test_what_cannot_be_read_is_named(data, words):
    with pytest.raises(DataError) as error:
        read(data)
    assert all(word in str(error.value) for word in words.split("|")), error.value
    assert "\n" not in str(error.value)


def test_splits_by_name():
    table = Dataset.from_list(ROWS)
    for train in (
        DatasetDict(train=table, dev=table, extra=table),
        {"train": pd.DataFrame(ROWS), "dev": ROWS, "extra": ROWS},
    ):
        splits, notes = as_splits({"train": train, "validation": None, "test": pl.DataFrame(ROWS)}, SECTION, COLUMNS)
        assert list(splits) == ["train", "validation", "test"]
        assert all(split.to_list() == ROWS for split in splits.values())
        assert len(notes) == 1 and "extra" in notes[0]
    with pytest.raises(DataError, match="no split 'train'"):
        as_splits({"train": DatasetDict(learn=table)}, SECTION, COLUMNS)
