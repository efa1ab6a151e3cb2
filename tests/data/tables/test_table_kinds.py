"""JSON documents, workbooks, archives, files without a header: whatever holds a table."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pyarrow as pa
import pytest
from datasets import Dataset
from loaded_splits import load, refusal, section

from sft_hf.core.sources.sources import resolve
from sft_hf.data.tables import archives

ROWS = [{"text": "a b", "label": "x", "n": 1}, {"text": "c, d", "label": "y", "n": 2}]
EXPECTED = [("a b", "x"), ("c, d", "y")]


def read(path, notes=None, role="train", **settings):
    splits = load(section(**settings), resolve(str(path), what="data set", key="data"))
    if notes is not None:
        notes += splits.notes
    streamed = load(section(**{**settings, "streaming": True}), resolve(str(path), what="data set", key="data"))
    rows = [(row["text"], row["label"]) for row in splits.by_role[role].to_list()]
    if role == "train":
        assert [(row["text"], row["label"]) for row in streamed.by_role[role]] == rows
    return rows


def refused(path, **settings):
    return refusal(section(**settings), resolve(str(path), what="data set", key="data"))


# --- JSON -----------------------------------------------------------------------------------------------------

DOCUMENTS = {
    "indented": json.dumps(ROWS, indent=2),
    "lines": "\n".join(map(json.dumps, ROWS)),
    "objects over several lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "objects with commas between": ",\n".join(json.dumps(row, indent=1) for row in ROWS),
    "data": json.dumps({"data": ROWS}),
    "rows and more": json.dumps({"version": 2, "authors": ["a"], "rows": ROWS, "more": {"a": {"b": 1}}}, indent=2),
    "deep": json.dumps({"response": {"page": 1, "items": ROWS}}),
    "columns": json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ("text", "label", "n")}),
    "lists": json.dumps({name: [row[name] for row in ROWS] for name in ("n", "label", "text")}, indent=2),
    "index": json.dumps({"id 7": ROWS[0], "id 3": ROWS[1]}),
    "split": json.dumps(
        {"columns": ["label", "text"], "index": [0, 1], "data": [[r["label"], r["text"]] for r in ROWS]}
    ),
    "one": json.dumps(ROWS[0]),
}


@pytest.mark.parametrize("shape", DOCUMENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_of_every_shape(tmp_path, shape, encoding):
    (tmp_path / "a.json").write_text(DOCUMENTS[shape], encoding=encoding)
    assert read(tmp_path / "a.json") == EXPECTED[: 1 if shape == "one" else 2]


def test_the_key_that_holds_the_rows_is_said(tmp_path):
    (tmp_path / "a.json").write_text(DOCUMENTS["rows and more"])
    notes = []
    read(tmp_path / "a.json", notes)
    assert "list of objects under 'rows'" in notes[0]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"train": ROWS, "test": ROWS}, "several lists of objects, under train, test"),
        ({"text": ["a"], "label": ["x", "y"]}, "different lengths"),
        ({"columns": ["text", "label"], "data": [["a", "x"], ["b"]]}, "row 1 under 'data' has 1 values"),
        ([["a", "x"]], "row 0 is not an object"),
        (5, "not an object"),
    ],
)
def test_documents_without_one_list_of_rows(tmp_path, document, words):
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert words in refused(tmp_path / "a.json")


def test_a_broken_document_is_named_by_its_line(tmp_path):
    (tmp_path / "a.json").write_text(DOCUMENTS["indented"][:-5])
    assert "line 11 is not valid JSON" in refused(tmp_path / "a.json")


def test_arrays_of_values_take_the_names_of_columns(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([["a b", 1, "x"], ["c, d", 2, "y"]]))
    assert read(tmp_path / "a.json", column_names=["text", "n", "label"]) == EXPECTED


@pytest.mark.parametrize("odd", [["a", 1], [2**63, -1], [{"a": 1}, [1]], [[1], ["a"]], [float("nan"), "b"]])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_columns_that_nobody_needs_cannot_stop_a_run(tmp_path, odd, name):
    rows = [{**row, "odd": value} for row, value in zip(ROWS, odd, strict=True)]
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) if name == "a.jsonl" else json.dumps(rows))
    assert read(tmp_path / name) == EXPECTED
    message = refused(tmp_path / name, label_column="missing")
    assert "no column 'missing'" in message and "text, label, n" in message


def test_a_needed_column_of_mixed_values_is_named_with_its_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n')
    assert "row 0 holds a number, row 1 holds text" in refused(tmp_path / "a.jsonl")


def test_lines_that_are_not_json_are_skipped_by_choice(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b", "label": "x"}\n{"text": \n[1]\n{"text": "c, d", "label": "y"}\n')
    notes = []
    assert read(tmp_path / "a.jsonl", notes, on_bad_row="skip") == EXPECTED
    assert "2 of 4 rows skipped" in notes[0] and "line 2" in notes[0] and "line 3" in notes[0]
    assert "line 2 is not valid JSON" in refused(tmp_path / "a.jsonl")


# --- columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_typed_files_are_read_by_their_needed_columns(tmp_path, suffix):
    table = pa.table({**{name: [row[name] for row in ROWS] for name in ROWS[0]}, "odd": [[{"a": 1}], []]})
    if suffix == ".parquet":
        Dataset(table).to_parquet(tmp_path / f"a{suffix}")
    else:
        with pa.OSFile(str(tmp_path / f"a{suffix}"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert read(tmp_path / f"a{suffix}") == EXPECTED
    splits = load(section(), resolve(str(tmp_path / f"a{suffix}"), what="data set", key="data"))
    assert splits.by_role["train"].column_names == ["text", "label", "row_id"]


@pytest.mark.parametrize("header", [",text,label", "Unnamed: 0,text,label", "text,label,", "n,n,text,label"])
def test_columns_without_a_name_or_twice_do_not_matter(tmp_path, header):
    width = header.count(",") + 1
    rows = [["0"] * (width - 2) + ["a", "x"], ["1"] * (width - 2) + ["b", "y"]]
    if header.startswith("text"):
        rows = [row[1:] + row[:1] for row in rows]
    (tmp_path / "a.csv").write_text("\n".join([header, *map(",".join, rows)]))
    assert read(tmp_path / "a.csv") == [("a", "x"), ("b", "y")]
    (tmp_path / "b.csv").write_text("text,text,label\na,b,x\n")
    assert "names column 'text' more than once" in refused(tmp_path / "b.csv")


def test_files_without_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("1|a, b|x\n2|c|y\n")
    names = {"delimiter": "|", "column_names": ["id", "text", "label"]}
    assert read(tmp_path / "a.csv", **names) == [("a, b", "x"), ("c", "y")]
    (tmp_path / "b.csv").write_text("id|text|label\n1|a|x\n2|c|y\n")
    assert read(tmp_path / "b.csv", **names) == [("a", "x"), ("c", "y")], "a header after all"
    assert "line 1 has 3 fields, data.column_names has 2" in refused(
        tmp_path / "a.csv", delimiter="|", column_names=["text", "label"]
    )


@pytest.mark.parametrize("name", ["a.txt", "a.data", "plain"])
def test_other_endings_are_told_by_their_content(tmp_path, name):
    (tmp_path / name).write_text("label\ttext\nx\ta b\ny\tc, d\n")
    notes = []
    assert read(tmp_path / name, notes) == EXPECTED
    assert "by its content" in notes[0]
    (tmp_path / name).write_text("label;text\nx;a b\ny;c, d\n")
    assert "data.delimiter" in refused(tmp_path / name)
    assert read(tmp_path / name, delimiter=";") == EXPECTED


# --- workbooks ------------------------------------------------------------------------------------------------


def workbook(path, **sheets):
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook(tmp_path):
    rows = [[], ["n", "text", "label"], [1, "a b", 1], [2.0, "café", 2], [None, 7.5, True], []]
    path = workbook(tmp_path / "a.xlsx", Sheet=rows)
    assert read(path) == [("a b", "1"), ("café", "2"), ("7.5", "true")]


def test_the_sheet_with_the_needed_columns_is_read_and_said(tmp_path):
    good = [["text", "label"], ["a", "x"], ["b", "y"]]
    path = workbook(tmp_path / "a.xlsx", About=[["made by", "me"]], Rows=good, Old=[["text", "label"], ["z", "z"]])
    notes = []
    assert read(path, notes) == [("a", "x"), ("b", "y")]
    assert "sheet 'Rows' is read, and not 'About', 'Old'" in notes[0]
    assert read(path, sheet="Old") == [("z", "z")]
    assert "no sheet 'old' (data.sheet); did you mean Old?" in refused(path, sheet="old")
    assert "no column 'txt'" in refused(path, text_column="txt")
    assert "is empty" in refused(workbook(tmp_path / "b.xlsx", A=[[]]))


@pytest.mark.parametrize("name", ["a.xlsx", "a.ods", "a.xls"])
def test_damaged_workbooks(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 words")
    assert name in refused(tmp_path / name)


def test_a_workbook_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("sft_hf.data.tables.workbooks.MAX_UNPACKED", 100)
    path = workbook(tmp_path / "a.xlsx", A=[["text", "label"]])
    assert "once unpacked" in refused(path)


@pytest.mark.parametrize("others", [("test",), ("Validation", "Test ")])
def test_sheets_that_are_splits_are_not_dropped(tmp_path, others):
    rows = [["text", "label"], ["a b", "x"], ["c, d", "y"]]
    path = workbook(tmp_path / "a.xlsx", Train=rows, **dict.fromkeys(others, rows))
    assert "look like splits" in refused(path) and "'Train'" in refused(path)
    assert read(path, sheet="Train") == EXPECTED


@pytest.mark.parametrize("gap", [[None, None], [" ", None]])
def test_empty_rows_between_the_rows_of_a_sheet(tmp_path, gap):
    path = workbook(tmp_path / "a.xlsx", S=[["text", "label"], ["a b", "x"], gap, gap, ["c, d", "y"]])
    notes = []
    assert read(path, notes) == EXPECTED and "2 empty rows" in notes[0]


def test_an_open_document_sheet(tmp_path):
    pytest.importorskip("python_calamine")
    cells = "".join(
        "<table:table-row>"
        + "".join(
            f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>' for cell in row
        )
        + "</table:table-row>"
        for row in (["text", "label"], ["a b", "x"], ["c, d", "y"])
    )
    spaces = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "table", "text")
    )
    content = (
        f'<office:document-content {spaces}><office:body><office:spreadsheet><table:table table:name="S">{cells}'
        "</table:table></office:spreadsheet></office:body></office:document-content>"
    )
    with zipfile.ZipFile(tmp_path / "a.ods", "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("content.xml", content)
        manifest = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
        archive.writestr("META-INF/manifest.xml", f'<manifest:manifest xmlns:manifest="{manifest}"/>')
    assert read(tmp_path / "a.ods") == EXPECTED


# --- archives -------------------------------------------------------------------------------------------------

CSV = b'text,label\na b,x\n"c, d",y\n'


def zipped(path, **contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_compressed_files(tmp_path, suffix, name):
    content = CSV if name == "a.csv" else DOCUMENTS["lines"].encode()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(
        suffix, lambda content: pa.Codec("zstd").compress(content, asbytes=True)
    )
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(content))
    assert read(path) == EXPECTED
    path.write_bytes(pack(content)[:-6])
    assert "damaged" in refused(path)
    path.write_bytes(content)
    assert "damaged" in refused(path)


def test_a_zip_archive_with_one_table(tmp_path):
    path = zipped(
        tmp_path / "reviews.zip", **{"reviews_csv": CSV, "README_md": b"words", "__MACOSX__reviews_csv": b"?"}
    )
    assert read(path) == EXPECTED
    sink = io.BytesIO()
    Dataset.from_dict({"text": ["a b", "c, d"], "label": ["x", "y"]}).to_parquet(sink)
    assert read(zipped(tmp_path / "b.zip", data__x_parquet=sink.getvalue())) == EXPECTED
    assert "no table in the archive; it holds: notes.md" in refused(zipped(tmp_path / "c.zip", notes_md=b""))
    (tmp_path / "d.zip").write_bytes(b"words")
    assert "not a zip archive" in refused(tmp_path / "d.zip")


def test_the_tables_of_an_archive_are_splits_by_their_names(tmp_path):
    path = zipped(tmp_path / "a.zip", data__train_csv=CSV, data__test_csv=b"text,label\ne,x\n", data__old_csv=CSV)
    notes = []
    assert read(path, notes) == EXPECTED and read(path, role="test") == [("e", "x")]
    assert "not used: split old" in notes
    assert read(path, data_files={"train": "data/old.csv"}) == EXPECTED
    assert "no split 'train'" in refused(zipped(tmp_path / "b.zip", a_csv=CSV, b_csv=CSV))


def test_a_folder_of_archives(tmp_path):
    zipped(tmp_path / "train.zip", whatever_csv=CSV)
    zipped(tmp_path / "test.csv.zip", test_csv=b"text,label\ne,x\n")
    assert read(tmp_path) == EXPECTED and read(tmp_path, role="test") == [("e", "x")]


def test_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1000)
    assert "once unpacked" in refused(zipped(tmp_path / "a.zip", train_parquet=b"\0" * 5000))
