"""Text files as programs write them: encodings, byte order marks, line ends."""

from __future__ import annotations

import codecs

import pytest

from sft_hf.core.errors import DataError
from sft_hf.data.tables.files import iter_rows, read_table

TEXT = "text,label\ncafé “so”,x\nnaïve,y\n"
ROWS = [{"text": "café “so”", "label": "x"}, {"text": "naïve", "label": "y"}]


def read(path, notes=None, **options):
    whole = read_table(path, notes=notes, **options).to_list()
    streamed = [row for batch in iter_rows(path, **options) for row in zip(*batch.values(), strict=True)]
    assert [tuple(row.values()) for row in whole] == streamed
    return whole


def refusal(path, **options):
    with pytest.raises(DataError) as error:
        read_table(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_byte_order_marks_are_obeyed(tmp_path, encoding, name):
    text = TEXT if name == "a.csv" else TEXT.replace(",", "\t")
    if name == "a.jsonl":
        text = '{"text": "café “so”", "label": "x"}\n{"text": "naïve", "label": "y"}'
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", [TEXT, "text,label\n比赛,银行\n面包,价格\n"])
def test_zero_bytes_tell_utf_16_without_a_mark(tmp_path, encoding, text):
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    notes = []
    assert len(read(tmp_path / "a.csv", notes)) == 2
    assert encoding.upper() in notes[0] and "zero bytes" in notes[0]


def test_other_encodings_are_proposed_with_the_word_as_it_would_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(TEXT.encode("cp1252"))
    message = refusal(tmp_path / "a.csv")
    assert "line 2 is not UTF-8 text (byte 4" in message
    assert "set data.encoding" in message and "'café' in cp1252" in message
    assert read(tmp_path / "a.csv", encoding="cp1252") == ROWS
    (tmp_path / "b.tsv").write_bytes("text\tlabel\nok\tx\nмиф\ty\n".encode("cp1251"))
    message = refusal(tmp_path / "b.tsv")
    assert "line 3" in message and "'миф' in cp1251" in message
    assert read(tmp_path / "b.tsv", encoding="cp1251")[1]["text"] == "миф"


def test_files_in_utf_8_stay_so_whatever_the_recipe_says_of_others(tmp_path):
    (tmp_path / "a.csv").write_text(TEXT, encoding="utf-8")
    notes = []
    assert read(tmp_path / "a.csv", notes, encoding="cp1252") == ROWS
    assert "is UTF-8 and read as such" in notes[0]


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13", ""])
def test_encodings_that_do_not_exist(tmp_path, encoding):
    (tmp_path / "a.csv").write_text(TEXT)
    assert "data.encoding: no encoding" in refusal(tmp_path / "a.csv", encoding=encoding)


@pytest.mark.parametrize("content", [codecs.BOM_UTF16_LE + b"a\x00\n\x00\x00\xd8", codecs.BOM_UTF32_LE + b"\xff" * 8])
def test_damaged_wide_text_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    assert "text near line" in refusal(tmp_path / "a.csv")


def test_a_nul_character_is_named_or_its_row_skipped(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\na,x\nb\0,y\nc,x\n")
    assert "line 3 holds a NUL character" in refusal(tmp_path / "a.csv")
    notes = []
    assert [row["text"] for row in read(tmp_path / "a.csv", notes, on_bad_row="skip")] == ["a", "c"]
    assert "1 of 3 rows skipped" in notes[0]


# --- line ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl"])
def test_line_ends_of_every_system(tmp_path, end, name):
    lines = {"a.csv": ["text,label", "a b,x", "c,y"], "a.tsv": ["text\tlabel", "a b\tx", "c\ty"], "a.txt": ["a b", "c"]}
    content = end.join(lines.get(name, ['{"text": "a b"}', '{"text": "c"}']))
    for last in ("", end):
        (tmp_path / name).write_bytes((content + last).encode())
        assert [row["text"] for row in read(tmp_path / name)] == ["a b", "c"]


def test_a_carriage_return_inside_a_line_or_a_quoted_field_is_part_of_the_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,label\na\rb,x\n"c\rd",y\n"e\r\nf",z\r\n\rg,x\n')
    assert [row["text"] for row in read(tmp_path / "a.csv")] == ["a\rb", "c\rd", "e\r\nf", "\rg"]
    (tmp_path / "b.csv").write_bytes(b'text,label\r"a\nb",x\rc,y\r')
    assert [row["text"] for row in read(tmp_path / "b.csv")] == ["a\nb", "c"]
