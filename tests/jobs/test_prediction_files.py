"""Predictions as files: what a file's name asks for, and what stands in it."""

from __future__ import annotations

import pytest

from sft_hf.core.errors import UserError
from sft_hf.jobs.prediction_files import format_of, refuse_to_replace, write_predictions


@pytest.mark.parametrize(
    ("output", "wanted", "expected"),
    [
        (None, None, "jsonl"),
        ("a.TXT", None, "txt"),
        ("a.log", None, "jsonl"),
        ("a.csv", "jsonl", "jsonl"),
        ("a.csv", None, "csv"),
    ],
)
def test_the_ending_says_the_format(output, wanted, expected):
    assert format_of(output, wanted) == expected


@pytest.mark.parametrize("ending", ["tsv", "parquet", "xlsx"])
def test_a_table_is_not_promised(ending):
    with pytest.raises(UserError, match=rf"unsupported output format \.{ending}"):
        format_of(f"a.{ending}", None)


def test_a_label_with_a_line_break_is_one_line_of_text(tmp_path):
    rows = [{"prediction": "one\nlabel"}, {"prediction": ["a", "b"]}, {"prediction": ""}]
    write_predictions(rows, str(tmp_path / "a.txt"), "txt")
    assert (tmp_path / "a.txt").read_text() == "one label\na, b\n\n"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_names_of_files_that_are_no_text_are_written_all_the_same(tmp_path, kind):
    path = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    rows = [
        {"id": 0, "path": path, "prediction": "rot\u00e9"},
        {"id": 1, "path": "b", "prediction": None, "error": "x"},
    ]
    write_predictions(rows, str(tmp_path / "out"), kind)
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert ("rot\u00e9" in text or "rot\\u00e9" in text) and (kind == "txt" or "\\udce9.png" in text)


def test_an_input_is_not_replaced_under_any_name(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("text\n")
    (tmp_path / "link.csv").symlink_to(path)
    with pytest.raises(UserError, match="is the input itself"):
        refuse_to_replace(["some text", str(path)], str(tmp_path / "link.csv"))
    refuse_to_replace(["some text", str(path)], str(tmp_path / "other.csv"))
