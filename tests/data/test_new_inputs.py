"""What the inputs of `predict` are taken for: nothing vanishes, and no file's name is classified as a text."""

from __future__ import annotations

import gzip
import io
import json
import logging
import zipfile
from types import SimpleNamespace

import pytest

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.new_inputs.inputs import Input, chunked
from sft_hf.data.new_inputs.media import media_inputs
from sft_hf.data.new_inputs.texts import text_inputs

DATA = DataSection(name="x")


def read(*inputs, columns=("text",), literal=False):
    return list(text_inputs(inputs, DATA, columns, literal))


# --- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.docx", "pictures.zip", "clip.wav", "notes", "new.md"])
def test_a_file_that_cannot_be_read_is_never_a_text(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04\x00\xff")
    (one,) = read(str(tmp_path / name))
    assert name in one.error and "--text" in one.error


def test_a_workbook_is_never_a_text(tmp_path):
    for name in ("new.xlsx", "old.XLS", "open.ods"):
        (tmp_path / name).write_bytes(b"\x00broken")
        (one,) = read(str(tmp_path / name))
        assert name in one.error


def test_a_folder_is_never_a_text(tmp_path):
    (one,) = read(str(tmp_path))
    assert "is not a file" in one.error and "--text" in one.error


@pytest.mark.parametrize("given", ["gone.csv", "gone.TXT", "gone.xlsx", "nowhere/letter.docx", "C:\\data\\x", "a/b"])
def test_what_looks_like_a_missing_file_says_so(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (one,) = read(given)
    assert "no such file" in one.error and "--text" in one.error
    (one,) = read(given, literal=True)
    assert one.error is None and one.columns == {"text": given}


def test_a_missing_file_in_a_folder_that_exists_may_have_blanks_in_its_name(tmp_path):
    (one,) = read(str(tmp_path / "my letter.docx"))
    assert "no such file" in one.error


@pytest.mark.parametrize(
    "text",
    ["oil prices rose", "open 24/7 and cheap", "good.", "x" * 5000, "-", "a\nb", "he/she said \\o/ to us", "3.5"],
)
def test_texts_stay_texts(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (one,) = read(text)
    assert one == Input({"text": text})


def test_a_text_that_is_a_files_name_can_be_given_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "goal").write_text("x")
    assert read("goal")[0].error
    assert read("goal", "-", literal=True) == [Input({"text": "goal"}), Input({"text": "-"})]


def test_blank_lines_are_named_and_keep_the_others_rows(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n   \n")
    found = read(str(tmp_path / "a.txt"))
    assert [(one.row, one.columns["text"], one.error is None) for one in found] == [
        (0, "one", True),
        (1, "", False),
        (2, "two", True),
        (3, "   ", False),
    ]
    assert "a.txt row 1" in found[1].error
    stdin = read(io.StringIO("one\n\ntwo"))
    assert [(one.path, one.row, bool(one.error)) for one in stdin] == [("-", 0, False), ("-", 1, True), ("-", 2, False)]


def test_standard_input_that_is_not_text_is_named():
    stream = SimpleNamespace(read=None, buffer=[b"one\n", b"caf\xe9\n", b"two\n"])
    first, last = read(stream)
    assert first.columns == {"text": "one"} and "line 2" in last.error and "UTF-8" in last.error


def test_empty_files_are_named(tmp_path):
    for name in ("a.txt", "a.csv", "a.jsonl"):
        (tmp_path / name).write_text("")
        (one,) = read(str(tmp_path / name))
        assert name in one.error


def test_rows_of_tables_carry_their_place_and_their_own_id(tmp_path):
    (tmp_path / "a.csv").write_text("ID,x,text\nr7,1,one\nr8,2,\nr9,3,two\n")
    found = read(str(tmp_path / "a.csv"))
    assert [(one.id, one.row, one.columns) for one in found] == [
        ("r7", 0, {"text": "one"}),
        ("r8", 1, {"text": ""}),
        ("r9", 2, {"text": "two"}),
    ]
    assert "a.csv row 1" in found[1].error
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ({"text": "x"}, {"text": 5}, {"y": 1})))
    found = read(str(tmp_path / "b.jsonl"))
    assert [(one.id, one.row, bool(one.error)) for one in found] == [(None, 0, False), (None, 1, True), (None, 2, True)]
    assert found[1].described(5) == {"id": 5, "path": str(tmp_path / "b.jsonl"), "row": 1, "text": 5}


def test_cells_of_any_kind_can_be_written_down(tmp_path):
    import datetime

    import pyarrow
    from pyarrow import parquet

    day = datetime.date(2024, 2, 29)
    table = {"id": [day, None, day], "text": pyarrow.array([float("nan"), 1.5, None])}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"))
    rows = [one.described(number) for number, one in enumerate(found)]
    assert all(one.error for one in found) and json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["id"] for row in rows] == ["2024-02-29", 1, "2024-02-29"]


def test_a_column_that_is_missing_is_named_once(tmp_path):
    (tmp_path / "a.csv").write_text("txt\none\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"txt": "one"}\n{"txt": "two"}\n')
    for name in ("a.csv", "a.jsonl"):
        (one,) = read(str(tmp_path / name))
        assert "no column 'text'" in one.error and "txt" in one.error


def test_a_row_that_cannot_be_read_hides_no_other(tmp_path):
    for count in (2, 1500):
        (tmp_path / "a.csv").write_text("text,x\n" + "one,1\n" * count + "two\nthree,3\nfour\n")
        found = read(str(tmp_path / "a.csv"))
        assert [one.row for one in found] == list(range(count + 3))
        assert [one.row for one in found if one.error] == [count, count + 2]
        assert f"line {count + 2}" in found[count].error and found[count + 1].columns == {"text": "three"}
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"\n{"text": "three"}\n[]\n')
    good, bad, last, array = read(str(tmp_path / "b.jsonl"))
    assert good.columns == {"text": "one"} and "line 2" in bad.error and last.columns == {"text": "three"}
    assert "not an object" in array.error and array.row == 3
    (tmp_path / "c.csv").write_text("text,x\none\ntwo,2\n")
    assert [bool(one.error) for one in read(str(tmp_path / "c.csv"))] == [True, False]


def test_archives_and_compressed_lines(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.csv", "id,text\n7,one\n")
        archive.writestr("b.txt", "two\n\nthree\n")
        archive.writestr("__MACOSX/._b.txt", b"\0")
        archive.writestr("c.pdf", b"%PDF-1.4")
    found = read(str(tmp_path / "a.zip"))
    assert [one.columns.get("text") for one in found] == ["one", "two", "", "three", None]
    assert found[0].id == "7" and found[1].path.endswith("a.zip/b.txt") and found[3].row == 2
    assert "blank" in found[2].error and "PDF" in found[4].error
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    assert [one.row for one in read(str(tmp_path / "d.txt.gz"))] == [0, 1, 2]
    (tmp_path / "e.zip").write_bytes(b"PK\x03\x04 cut off")
    (one,) = read(str(tmp_path / "e.zip"))
    assert "zip archive" in one.error


def test_pairs_need_a_table(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    for one in read("one text", str(tmp_path / "a.txt"), columns=("a", "b")):
        assert "pairs of texts" in one.error
    (tmp_path / "a.csv").write_text("b,a\n2,1\n")
    assert read(str(tmp_path / "a.csv"), columns=("a", "b"))[0].columns == {"a": "1", "b": "2"}


def test_chunks_are_bounded_by_rows_and_characters():
    inputs = [Input({"text": "x" * 10}) for _ in range(10)]
    assert list(map(len, chunked(inputs, 4, 1000))) == [4, 4, 2]
    assert list(map(len, chunked(inputs, 100, 30))) == [3, 3, 3, 1]


def test_text_that_is_no_unicode_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d of a face"}\n')
    assert all("a.jsonl" in one.error for one in read(str(tmp_path / "a.jsonl")))
    (argument,) = read(b"caf\xe9 au lait".decode("utf-8", "surrogateescape"))
    assert "input 0" in argument.error


# --- pictures and recordings -------------------------------------------------------------------------------------


def jpegs(folder):
    found = sorted(folder.rglob("*.jpg"))
    if not found:
        raise DataError(f"{folder}: no images in this folder")
    return found


def media(*inputs):
    return list(media_inputs(inputs, DATA, "image", jpegs, ("image",)))


def test_strays_in_a_folder_are_inputs_or_named(tmp_path, caplog):
    logging.getLogger("sft_hf").propagate = True
    for name in ("a.jpg", "b.png", "c.HEIC", "deep/d.jpg", "notes.txt", "Thumbs.db", "metadata.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = media(str(tmp_path))
    assert [one.path.removeprefix(f"{tmp_path}/") for one in found] == ["a.jpg", "b.png", "c.HEIC", "deep/d.jpg"]
    assert all(one.error is None for one in found)  # the reader says what is wrong with them
    assert all(name in caplog.text for name in ("3 files left out", "notes.txt", "Thumbs.db", "metadata.csv"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("https://example.org/a.jpg", "URL"),
        ("{tmp}/empty", "no images in this folder"),
        ("{tmp}/gone.jpg", "no such file"),
        ("{tmp}/*.tiff", "no file matches"),
        (io.StringIO("x"), "standard input"),
    ],
)
def test_one_bad_input_does_not_stop_the_others(tmp_path, given, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    given = given.format(tmp=tmp_path) if isinstance(given, str) else given
    bad, good = media(given, str(tmp_path / "a.jpg"))
    assert words in bad.error and good == Input({"image": str(tmp_path / "a.jpg")}, str(tmp_path / "a.jpg"))


def test_tables_of_paths_carry_row_id_and_table(tmp_path):
    (tmp_path / "list.csv").write_text("id,file_name\nx,a.jpg\ny,\n")
    table = str(tmp_path / "list.csv")
    good, bad = media(table)
    assert good == Input({"image": str(tmp_path / "a.jpg")}, str(tmp_path / "a.jpg"), 0, table, "x")
    assert (bad.row, bad.id, bad.path) == (1, "y", None) and "row 1" in bad.error


# --- recordings: rows that are parts ------------------------------------------------------------------------------


def recordings(*inputs, **data):
    section = DataSection(name="x", **data)
    return list(media_inputs(inputs, section, "audio", jpegs, ("audio", "video")))


def part(path, start, end):
    return {"path": str(path), "start": start, "end": end}


def test_a_row_of_a_manifest_is_the_part_that_it_says(tmp_path):
    (tmp_path / "long.wav").write_bytes(b"x")
    rows = [{"audio_filepath": "long.wav", "offset": 1.5, "duration": 2}, {"audio_filepath": "long.wav", "offset": 4}]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = recordings(str(tmp_path / "new.jsonl"))
    assert first.columns["audio"] == part(tmp_path / "long.wav", 1.5, 3.5)
    assert second.columns["audio"] == part(tmp_path / "long.wav", 4.0, None)
    told = first.described(0)
    assert (told["start"], told["end"], told["audio"]) == (1.5, 3.5, str(tmp_path / "long.wav"))


def test_starts_and_ends_of_a_table_are_read_as_in_training(tmp_path):
    (tmp_path / "talk.mp3").write_bytes(b"x")
    table = tmp_path / "cuts.csv"
    table.write_text("audio,start,end\ntalk.mp3,0:01,0:02.5\ntalk.mp3,3,soon\n")
    first, second = recordings(str(table))
    assert first.columns["audio"] == part(tmp_path / "talk.mp3", 1.0, 2.5) and first.error is None
    assert "row 1: " in second.error and "soon" in second.error
    for whole in (recordings(str(table), segment_columns="none"), recordings(str(table), segment_columns=["a", "b"])):
        assert [one.columns["audio"] for one in whole] == [str(tmp_path / "talk.mp3")] * 2
    (one,) = recordings(str(table), segment_columns=["start", "b"])
    assert "segment_columns" in one.error
