"""Quotation marks that enclose fields, and those that are ordinary characters."""

from __future__ import annotations

import csv
import io

import pytest

from sft_hf.core.errors import DataError
from sft_hf.data.tables.files import iter_rows, read_table

SENTENCES = ("a", '"b c', "d", 'e f"', 'the "g" h', '"i" j', "k", '"')


def texts(path, notes=None, **options):
    found = read_table(path, notes=notes, **options)["text"][:]
    assert [text for batch in iter_rows(path, **options) for text in batch["text"]] == found
    return found


def refusal(path, **options):
    with pytest.raises(DataError) as error:
        read_table(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("order", ["text first", "label first", "three columns"])
@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ","), ("a.psv", "|")])
def test_files_that_quote_nothing_lose_no_row(tmp_path, name, mark, order):
    lines = {"text first": "text{0}label", "label first": "label{0}text", "three columns": "id{0}text{0}label"}[order]
    rows = [lines.format(mark)]
    for number, sentence in enumerate(SENTENCES):
        values = {"text": sentence, "label": "xy"[number % 2], "id": str(number)}
        rows.append(mark.join(values[column] for column in lines.split("{0}")))
    (tmp_path / name).write_text("\n".join(rows) + "\n")
    notes = []
    assert texts(tmp_path / name, notes) == list(SENTENCES)
    assert "quotation marks are read as ordinary characters" in notes[0]


def test_a_pair_of_marks_on_different_rows_swallows_nothing(tmp_path):
    (tmp_path / "a.tsv").write_text('label\ttext\nx\ta\ny\t"b\nx\tc\ny\td"\nx\te\n')
    assert texts(tmp_path / "a.tsv") == ["a", '"b', "c", 'd"', "e"]
    (tmp_path / "b.csv").write_text('id,text,label\n1,a,x\n2,"b,y\n3,c,x\n4,d"\n5,e,y\n')  # row 4 has no label
    message = refusal(tmp_path / "b.csv")
    assert "line 3" in message


def test_rows_swallowed_beside_properly_quoted_ones_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"a, a",x\nb,y\n"c,x\nd,y\ne",x\n"f, f",y\ng,x\nh,y\ni,x\nj,y\n')
    message = refusal(tmp_path / "a.csv")
    assert "starts on line 4 takes in lines that are rows themselves" in message and "data.quote_char" in message
    assert texts(tmp_path / "a.csv", quote_char='"') == ["a, a", "b", "c,x\nd,y\ne", "f, f", *"ghij"]


def test_line_breaks_inside_quotes_are_kept_and_said(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"Dear all,\nhow are you, fine\n\nbye",x\n"b, c",y\nd,x\n')
    notes = []
    assert texts(tmp_path / "a.csv", notes) == ["Dear all,\nhow are you, fine\n\nbye", "b, c", "d"]
    assert "1 rows run over several lines" in notes[0]


def test_two_rules_that_both_fit_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"a,\nb",x\n')
    assert "set data.quote_char" in refusal(tmp_path / "a.csv")
    assert texts(tmp_path / "a.csv", quote_char="") == ['"a', 'b"']
    assert texts(tmp_path / "a.csv", quote_char='"') == ["a,\nb"]


@pytest.mark.parametrize("options", [{"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_MINIMAL}])
@pytest.mark.parametrize("mark", [",", "\t"])
def test_what_the_csv_module_quotes_comes_back(tmp_path, options, mark):
    sentences = [*SENTENCES, "a, b\tc", 'x "y", z', 'line\nbreak, "q"']
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=mark, **options)
    writer.writerows([["text", "label"], *([sentence, "x"] for sentence in sentences)])
    path = tmp_path / ("a.csv" if mark == "," else "a.tsv")
    path.write_text(sink.getvalue(), newline="")
    assert texts(path) == sentences


def test_backslashes_before_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('"text","label"\n"say \\"hi\\", he said","x"\n"back\\\\slash","y"\n"b","x"\n')
    notes = []
    assert texts(tmp_path / "a.csv", notes) == ['say "hi", he said', "back\\slash", "b"]
    assert '\\"' in notes[0]


def test_a_writer_that_quotes_everything_is_not_taken_for_one_that_quotes_nothing(tmp_path):
    rows = "".join(f'"row {number}","{number % 2}"\n' for number in range(9))
    (tmp_path / "a.csv").write_text(rows + '"stray "quote","1"\n')
    names = {"column_names": ["text", "label"]}
    assert "line 10 cannot be read" in refusal(tmp_path / "a.csv", **names)
    assert len(texts(tmp_path / "a.csv", on_bad_row="skip", **names)) == 9
