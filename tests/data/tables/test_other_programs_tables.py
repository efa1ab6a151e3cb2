"""Tables and label columns as other programs write them: repeated headers, odd quotes, words for what is missing."""

from __future__ import annotations

import gzip

import pytest
from datasets import Dataset
from loaded_splits import load, refusal, section

from sft_hf.core.errors import DataError, did_you_mean, first_few
from sft_hf.core.recipe.sections import DataSection
from sft_hf.core.sources.sources import resolve
from sft_hf.data.labels.reading import read_labels
from sft_hf.data.labels.targets import parse_numbers, read_targets
from sft_hf.data.labels.values import similar_key, whole_number
from sft_hf.data.loading.loading import load_splits
from sft_hf.data.loading.roles import Splits
from sft_hf.data.tables.files import iter_rows, read_table

EXPECTED = [("it is late", "x"), ("a, b", "y"), ("c", "x")]


def rows_of(path, notes=None, **options):
    table = read_table(path, notes=notes, **options)
    found = list(zip(table["text"][:], table["label"][:], strict=True))
    batches = iter_rows(path, batch_size=1, **options)
    assert [(batch["text"][0], batch["label"][0]) for batch in batches] == found
    return found


def read(train, kind="auto", validation=None, test=None, **settings):
    """Return the labels by role, and what was said; `train` is a column, or {column: values}."""
    given = {"train": train, "validation": validation, "test": test}
    by_role = {}
    for role, values in given.items():
        if values is not None:
            columns = values if isinstance(values, dict) else {"label": values}
            count = len(next(iter(columns.values())))
            by_role[role] = Dataset.from_dict({"text": ["t"] * count, **columns, "row_id": range(count)})
    section_ = DataSection(name="x", **settings)
    after, _ = read_labels(Splits(by_role, {role: f"{role}.csv" for role in by_role}), section_, kind)
    labels = {role: data[section_.target_column][:] for role, data in after.by_role.items()}
    return labels, "\n".join(finding.text for finding in after.findings)


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_headers_that_are_repeated_are_no_rows(tmp_path, mark):
    part = 'text,label\nit is late,x\n"a, b",y\n'
    (tmp_path / "a.csv").write_text(part + mark + "text,label\nc,x\n", encoding="utf-8")
    notes = []
    assert rows_of(tmp_path / "a.csv", notes) == EXPECTED
    assert "1 lines that repeat the header" in notes[0]
    (tmp_path / "b.tsv").write_text("text\nc\ntext\n")
    assert read_table(tmp_path / "b.tsv")["text"][:] == ["c", "text"], "of one column, it may be a text"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_two_carriage_returns_before_the_line_feed(tmp_path, name):
    text = 'text,label\nit is late,x\n"a, b",y\nc,x\n'
    if name == "a.tsv":
        text = "text\tlabel\nit is late\tx\na, b\ty\nc\tx\n"
    (tmp_path / name).write_bytes(text.replace("\n", "\r\r\n").encode())
    assert rows_of(tmp_path / name) == EXPECTED
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\r\n{"text": "b"}\r\r\n')
    assert read_table(tmp_path / "a.jsonl")["text"][:] == ["a", "b"]


def test_two_byte_order_marks(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbftext,label\nc,x\n")
    assert rows_of(tmp_path / "a.csv") == [("c", "x")]
    assert "\\u200b" in did_you_mean("text", ["te\u200bxt"]), "what cannot be seen is spelled out"


@pytest.mark.parametrize(
    "text",
    [
        "'text','label'\n'it is late','x'\n'a, b','y'\n'c','x'\n",
        "id,label,text\n1,x,'it is late'\n2,y,'a, b'\n3,x,'c'\n",
        "text;n;label\n'it is late';1;x\n'a, b';2;y\n'c';3;x\n",
    ],
)
def test_single_quotes_that_enclose_fields(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    options = {"delimiter": ";"} if ";" in text else {}
    notes = []
    assert rows_of(tmp_path / "a.csv", notes, **options) == EXPECTED
    assert "single quotes enclose fields" in notes[0] and "data.quote_char" in notes[0]
    if "id" not in text:
        return
    with pytest.raises(DataError, match="4 fields"):
        read_table(tmp_path / "a.csv", quote_char='"')


@pytest.mark.parametrize("text", ["text,label\n'tis late,x\n'tis,y\nno,x\n", "text,label\na 'b',x\nc,y\nd,'z'\n"])
def test_single_quotes_that_are_letters(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert [f"{a},{b}" for a, b in rows_of(tmp_path / "a.csv")] == text.splitlines()[1:]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"text,label\n", mtime=0), ".gz"),
        (b"PK\x03\x04xl", ".xlsx"),
        (b"PAR1\x15\x04", ".parquet"),
        (b"%PDF-1", "PDF"),
    ],
)
def test_a_file_that_is_not_text_is_called_what_it_is(tmp_path, content, kind):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "a.csv")
    assert kind in str(error.value) and "encoding" not in str(error.value)


def test_a_stream_of_a_table_with_any_ending_reads_what_it_needs(tmp_path):
    (tmp_path / "a.data").write_text("n\tn\ttext\tlabel\n0\t0\tc\tx\n")
    splits = load(section(streaming=True), resolve(str(tmp_path / "a.data"), what="data set", key="data"))
    assert [(row["text"], row["label"]) for row in splits.by_role["train"]] == [("c", "x")]


def test_the_remedy_for_a_table_without_a_header_or_with_columns_of_labels(tmp_path):
    (tmp_path / "a.csv").write_text("it is late,x\nc,y\n")
    source = resolve(str(tmp_path / "a.csv"), what="data set", key="data")
    assert "data.column_names" in refusal(section(), source)
    (tmp_path / "a.csv").write_text("text,red,blue\nc,1,0\n")
    assert "data.label_column=[red, blue]" in refusal(section(label_column="red,blue"), source)


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["nan", "N/A", "?", "None", "<NA>"])
def test_a_test_that_has_only_words_for_missing_values_is_unlabelled(word):
    labels, said = read(["a", "b"] * 3, test=[word, word])
    assert labels["test"] == [None, None]
    assert repr(word) in said and "no score" in said
    with pytest.raises(DataError, match=r"test.csv: 1 of 2 rows have no label"):
        read(["a", "b"] * 3, test=[word, "a"])
    assert read(["a", "b"] * 3, test=[word, "a"], on_bad_row="skip")[0]["test"] == ["a"]


@pytest.mark.parametrize("word", ["nan", "N/A", "NULL", "None"])
def test_a_word_for_a_missing_value_among_the_labels_of_train_is_said(word):
    labels, said = read(["a", "b", word, word], test=[word, "a"])
    assert labels["test"] == [word, "a"], "it is a label, then"
    assert f"'{word}' (2 rows)" in said and "missing value" in said
    assert "missing value" not in read(["a", "b", word, word], label_names=["a", "b", word])[1]


def test_none_and_a_hyphen_are_good_names():
    assert read(["none", "irony", "-"])[1] == ""


def test_numbers_with_an_exponent_are_numbers():
    labels, said = read([0, 1, 2], test=["1e0", "2E+0"])
    assert labels["test"] == ["1", "2"] and "compared by value" in said
    assert whole_number("1e2") == 100 and whole_number("1.5e0") is None and whole_number("1e400") is None


@pytest.mark.parametrize("mark", ["1", "x", "Yes", True])
def test_an_empty_cell_is_no_label_where_no_cell_says_0(mark):
    empty = None if mark is True else ""
    columns = {"a": [mark, empty, empty], "b": [mark, mark, empty]}
    labels, said = read(columns, label_column=["a", "b"], test={"a": [empty] * 2, "b": [empty] * 2})
    assert labels["train"] == [["a", "b"], ["b"], []] and "empty cell" in said
    assert labels["test"] == [None, None]
    with pytest.raises(DataError, match=r"row 1 .*is empty"):
        read({"a": ["1", "", "0"], "b": ["1", "1", "0"]}, label_column=["a", "b"])


@pytest.mark.parametrize(("yes", "no"), [("Y", "N"), ("t", "F"), ("x", "0")])
def test_short_words_for_yes_and_no(yes, no):
    assert read({"a": [yes, no], "b": [yes, yes]}, label_column=["a", "b"])[0]["train"] == [["a", "b"], ["b"]]


@pytest.mark.parametrize("test", [[[], []], [[0, 0, 0], [0, 0, 0]]])
def test_a_test_whose_lists_name_no_label_is_unlabelled(test):
    train = [["a"], ["b", "a"], []] if test[0] == [] else [[1, 0, 1], [0, 1, 0]]
    labels, said = read(train, test=test)
    assert labels["test"] == [None, None] and "no score" in said


@pytest.mark.parametrize("values", [["010", "100", "110"], ["0001", "1000"]])
def test_strings_of_digits_0_and_1_are_said(values):
    assert "0 or 1 for each of" in read(values)[1]
    assert read(["01", "10", "11"])[1] == "" and read(["100", "200"])[1] == ""


def test_a_name_is_shown_on_one_line_and_what_cannot_be_seen_makes_no_other_label():
    assert first_few(["a\n", "b"], 5) == "a, b"
    assert similar_key("a\u200b") == similar_key("a") == similar_key("\ufeffA")


def test_an_empty_text_among_joined_labels_has_a_remedy():
    with pytest.raises(DataError, match=r"write \[\]"):
        read(["a,b", "", "b"], label_separator="comma")


@pytest.mark.parametrize("value", ["['a', 'b']", '["a"]', "[a b]"])
def test_lists_are_not_split_by_a_separator(value):
    if value == "[a b]":
        assert read([value, "a,b"], label_separator="comma")[0]["train"] == [["[a b]"], ["a", "b"]]
        return
    with pytest.raises(DataError, match=r"row 1 .*is a list.*data.label_separator"):
        read(["[]", value], label_separator="comma")


@pytest.mark.parametrize("labels", [["1", "01", "2"], ["+3", "3", "003"]])
def test_a_number_in_two_spellings_is_said(labels):
    assert "same number" in read(labels)[1]


# --- numbers -----------------------------------------------------------------------------------------------------


def test_lists_of_numbers_as_python_and_numpy_write_them():
    for text in ("(1.5, 2)", "array([1.5, 2. ])", "[1.5\n 2. ]", "tensor([1.5000, 2.0000])"):
        assert parse_numbers(text) == [1.5, 2.0]
    with pytest.raises(DataError, match="missing"):
        parse_numbers("[1.5, nan]")


@pytest.mark.parametrize("empty", ["", "NaN"])
def test_a_row_with_an_empty_target_of_several_can_be_left_out(empty):
    columns = {"a": ["1.5", empty, "2"], "b": ["1", "2", "3"]}
    section_ = DataSection(name="x", label_column=["a", "b"])
    rows = Dataset.from_dict({"text": list("tuv"), **columns, "row_id": range(3)})
    after, _ = read_labels(Splits({"train": rows}, {"train": "train.csv"}), section_, "regression")
    targets = read_targets(after.by_role["train"], section_.target_column)
    assert targets.values.tolist() == [[1.5, 1.0], [2.0, 3.0]] and targets.problems[0][0] == 1


@pytest.mark.parametrize("word", ["NaN", "n/a", ""])
def test_a_test_without_any_number_is_unlabelled(word):
    labels, said = read(["1.5", "2"], "regression", test=[word, word])
    assert labels["test"] == [None, None] and "no score" in said
    columns = {"a": ["1.5", "2"], "b": ["1", "3"]}
    labels, said = read(columns, "regression", label_column=["a", "b"], test={"a": [word] * 2, "b": [word] * 2})
    assert labels["test"] == [None, None] and "no score" in said


@pytest.mark.parametrize("column", ["split", "Set"])
def test_a_split_column_says_which_rows_are_tested(tmp_path, column):
    lines = [f"text {row},{'xy'[row % 2]},{'train' if row < 6 else 'test'},unused" for row in range(9)]
    (tmp_path / "all.csv").write_text("\n".join([f"text,label,{column},other", *lines]))
    splits = load_splits(
        section(name=str(tmp_path / "all.csv")),
        resolve(str(tmp_path / "all.csv")),
        {"data.text_column": "text", "data.label_column": "label"},
    )
    assert {role: list(data["row_id"]) for role, data in splits.by_role.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "test": [6, 7, 8],
    }
    assert any(repr(column) in note for note in splits.notes)
