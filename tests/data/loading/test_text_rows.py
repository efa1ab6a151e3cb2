"""Rows without a text: refused with their number, or left out and counted."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset
from loaded_splits import load, refusal, section

from sft_hf.core.errors import DataError
from sft_hf.core.sources.sources import resolve
from sft_hf.data.loading.text_rows import check_texts

ROWS = "text,label\na,x\n,y\nc,y\n   ,x\nd,x\n"


def table(**columns):
    return Dataset.from_dict(columns)


def local(path):
    return resolve(str(path), what="data set", key="data")


def test_the_first_bad_row_is_named_and_all_are_counted():
    check_texts(table(text=["a", "NA", "0", "😀"]), ["text"], "x")
    data = table(text=["a", " \n"], row_id=[0, 41])
    with pytest.raises(DataError) as error:
        check_texts(data, ["text"], "train.csv")
    assert str(error.value).startswith("train.csv row 41: column 'text' is empty;")
    assert "data.on_bad_row: skip" in str(error.value), "as for a picture"
    with pytest.raises(DataError, match=r"x row 0: column 'text' holds '3' \(int\), which is not text"):
        check_texts(table(other=["a"], text=[3]), ["other", "text"], "x")


def test_rows_beyond_one_batch_are_found(monkeypatch):
    monkeypatch.setattr("sft_hf.data.columns.READ_BATCH", 3)
    with pytest.raises(DataError, match=r"x row 7: .*2 rows cannot be used; data.on_bad_row: skip"):
        check_texts(table(text=["a"] * 7 + ["", "b", ""]), ["text"], "x")


def test_skipped_rows_keep_their_numbers(tmp_path):
    (tmp_path / "a.csv").write_text(ROWS)
    splits = load(section(on_bad_row="skip"), local(tmp_path / "a.csv"))
    assert splits.by_role["train"].to_list() == [
        {"text": "a", "label": "x", "row_id": 0},
        {"text": "c", "label": "y", "row_id": 2},
        {"text": "d", "label": "x", "row_id": 4},
    ]
    (note,) = splits.notes
    assert "a.csv: 2 of 5 rows skipped (data.on_bad_row): row 1: column 'text'" in note
    assert "row 3: column 'text'" in note
    assert "a.csv row 1: column 'text' is empty" in refusal(section(), local(tmp_path / "a.csv"))


def test_both_texts_of_a_pair_are_needed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "a", "r": "b", "label": 1}\n{"q": "a", "label": 0}\n{"q": "", "r": "b"}\n')
    names = {"text_column": "q", "text_pair_column": "r"}
    splits = load(section(on_bad_row="skip", **names), local(tmp_path / "a.jsonl"))
    assert splits.by_role["train"]["row_id"][:] == [0]
    assert "row 1: column 'r' is empty" in splits.notes[0] and "row 2: column 'q'" in splits.notes[0]
    assert "(2 rows cannot be used" in refusal(section(**names), local(tmp_path / "a.jsonl"))


def test_rows_that_are_all_bad_are_refused_even_then(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n,x\n,y\n")
    assert "no row can be used" in refusal(section(on_bad_row="skip"), local(tmp_path / "a.csv"))


def test_a_stream_leaves_them_out_too(tmp_path, caplog):
    (tmp_path / "a.csv").write_text(ROWS)
    splits = load(section(on_bad_row="skip", streaming=True), local(tmp_path / "a.csv"))
    with caplog.at_level(logging.WARNING, "sft_hf"):
        assert [row["text"] for row in splits.by_role["train"]] == ["a", "c", "d"]
    assert "without a text skipped" in caplog.text


def test_rows_with_other_fields_than_the_header_are_skipped_with_their_lines(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\na,x\nb, c,x\nc\n"d" e,y\n"f, g",y\n')
    splits = load(section(on_bad_row="skip"), local(tmp_path / "a.csv"))
    assert splits.by_role["train"]["text"][:] == ["a", "f, g"]
    assert "3 of 5 rows skipped" in splits.notes[0] and "line 3 has 3 fields" in splits.notes[0]
    assert "line 5" in splits.notes[0]
    message = refusal(section(), local(tmp_path / "a.csv"))
    assert "line 3 has 3 fields" in message and "3 rows cannot be used" in message
