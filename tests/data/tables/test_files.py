from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiers import long

from sft_hf.core.errors import DataError, StorageError
from sft_hf.data.tables import delimited, encodings, files, json_shape
from sft_hf.data.tables.files import iter_rows, read_table, table_features, table_stem


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(path: Path, **options) -> list[dict]:
    """The rows, after checking that both readers agree on them, however the batches fall."""
    whole = read_table(path, **options)
    for batch_size in (1, 2, 1000):
        streamed: list[dict] = []
        for batch in iter_rows(path, batch_size=batch_size, **options):
            sizes = {len(column) for column in batch.values()}
            assert len(sizes) == 1 and sizes.pop() <= batch_size
            streamed += [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        padded = [{name: row.get(name) for name in whole.column_names} for row in streamed]
        assert padded == whole.to_list()
    assert whole.cache_files == []
    return whole.to_list()


def refusal(path: Path, **options) -> str:
    """The message of the DataError that both readers raise."""
    with pytest.raises(DataError) as whole:
        read_table(path, **options)
    with pytest.raises(DataError) as streamed:
        list(iter_rows(path, **options))
    assert str(streamed.value) == str(whole.value)
    assert str(path) in str(whole.value) and "\n" not in str(whole.value)
    return str(whole.value).replace(str(path), path.name)


# --- CSV -----------------------------------------------------------------------------------------------------


def test_csv_values_stay_text(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n001,NA\nnull,1.0\n,true\n nan ,\n")
    assert rows_of(path) == [
        {"text": "001", "label": "NA"},
        {"text": "null", "label": "1.0"},
        {"text": "", "label": "true"},
        {"text": " nan ", "label": ""},
    ]
    assert read_table(path).features == Features({"text": Value("string"), "label": Value("string")})


def test_csv_quotes_newlines_and_blank_lines(tmp_path):
    text = '\ufefftext,label\r\n"a, ""b""\r\nc, d",x\r\n\r\n   \r\n5" disk,y\r\n'
    expected = [{"text": 'a, "b"\r\nc, d', "label": "x"}, {"text": '5" disk', "label": "y"}]
    assert rows_of(write(tmp_path, "a.csv", text)) == expected
    assert rows_of(write(tmp_path, "A.CSV", text.rstrip())) == expected


def test_csv_line_separators_of_unicode_are_no_line_ends(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na\u2028b\x85c,x\n")
    assert rows_of(path) == [{"text": "a\u2028b\x85c", "label": "x"}]


@pytest.mark.parametrize(
    ("name", "delimiter", "mark"),
    [("a.tsv", None, "\t"), ("a.tab", None, "\t"), ("a.csv", ";", ";"), ("a.csv", "\\t", "\t")],
)
def test_delimiters(tmp_path, name, delimiter, mark):
    path = write(tmp_path, name, f"text{mark}label\na, b{mark}x\n")
    assert rows_of(path, delimiter=delimiter) == [{"text": "a, b", "label": "x"}]


def test_quotes_as_ordinary_characters(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"never closed\tx\nb\t"y"\n')
    assert rows_of(path, quote_char="") == [
        {"text": '"never closed', "label": "x"},
        {"text": "b", "label": '"y"'},
    ]


def test_lines_after_the_header_are_skipped(tmp_path):
    path = write(tmp_path, "a.tab", "label\ttext\nd\tstring\nclass\t\n\nx\tone\ny\n")
    assert "line 6 has 1 field, the header has 2" in refusal(path, skip_lines=2)
    path = write(tmp_path, "b.tab", "label\ttext\nd\tstring\nclass\t\n\nx\tone\n")
    assert rows_of(path, skip_lines=2) == [{"label": "x", "text": "one"}]


def test_columns_are_chosen_and_ordered(tmp_path):
    path = write(tmp_path, "a.csv", "a,b,c\n1,2,3\n")
    assert list(read_table(path, columns=["c", "a"])[0].items()) == [("c", "3"), ("a", "1")]
    assert list(next(iter_rows(path, columns=["c", "a"]))) == ["c", "a"]
    assert "no column 'd'; Valid: a, b, c" in refusal(path, columns=["d"])
    path = write(tmp_path, "b.csv", "a;b\n1;2\n")
    assert "no column 'a'; if ';' separates its fields, set data.delimiter: \";\"" in refusal(path, columns=["a"])


def test_gzip(tmp_path):
    path = write(tmp_path, "a.csv.gz", gzip.compress(b"text,label\na,x\n"))
    assert rows_of(path) == [{"text": "a", "label": "x"}]
    assert "a.csv.gz: is damaged" in refusal(write(tmp_path, "a.csv.gz", path.read_bytes()[:-9]))
    assert "is damaged or not a gzip file" in refusal(write(tmp_path, "b.jsonl.gz", "{}\n"))
    assert "not a known table format" in refusal(write(tmp_path, "a.parquet.gz", b""))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "text,label\na,x\n\nb, c,y\n",
            "line 4 has 3 fields, the header has 2 (text, label); quote fields that hold a comma",
        ),
        ("text;label\na, b;x\n", "has one column (text;label); if ';' separates its fields, set data.delimiter: \";\""),
        ('text,label\n"a\nb",x\nc\n', "line 4 has 1 field, the header has 2"),
        ('text,label\n"a, a",x\n"b,y\nc,z\n', "the row that starts on line 3 cannot be read (unexpected end of data)"),
        ('text,label\n"a" b,x\n"a, a",x\n', "the row that starts on line 2 cannot be read"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("text,label\n", "holds no rows"),
        ("text,label\n\n \n", "holds no rows"),
        ("text,text\na,b\n", "the header names column 'text' more than once"),
        (",,\n0,a,x\n", "holds no rows"),
        (b"text,label\na,x\nb\xe9,y\n", "line 3 is not UTF-8 text (byte 2 of the line)"),
        ('"te\nxt"\na,x\n', "line 3 has 2 fields, the header has 1 (te xt)"),
        ("a" * 1001 + ",label\na,x\n", "a name of 1001 characters; is its first line the header?"),
    ],
)
def test_csv_errors(tmp_path, content, expected):
    assert expected in refusal(write(tmp_path, "a.csv", content))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"delimiter": ",,"}, "data.delimiter"),
        ({"delimiter": ""}, "data.delimiter"),
        ({"delimiter": "\n"}, "data.delimiter"),
        ({"delimiter": '"'}, "data.delimiter"),
        ({"quote_char": "''"}, "data.quote_char"),
    ],
)
def test_csv_options_that_make_no_sense(tmp_path, options, expected):
    assert expected in refusal(write(tmp_path, "a.csv", "text,label\na,x\n"), **options)


def test_an_open_quote_does_not_swallow_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_FIELD", 1000)
    path = write(tmp_path, "a.csv", 'text,label\n"a,x\n' + "b,y\n" * 1000 + '"c, c",x\n')
    before = csv.field_size_limit(10)
    try:
        assert "the row that starts on line 2 cannot be read (field larger than" in refusal(path)
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "a.txt"])
def test_a_line_that_never_ends_does_not_fill_the_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(encodings, "MAX_LINE", 2**20)
    content = b"text,label\n" + b"a" * 2**20 + b"\n"
    path = write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    if name == "a.jsonl.gz":
        path.write_bytes(gzip.compress(b"a" * 2**21))
    assert "is longer than 1 MB" in refusal(path)


def test_tables_as_wide_as_a_book_are_refused(tmp_path):
    names = [f"c{number}" for number in range(10_001)]
    for name, content in (("a.csv", ",".join(names)), ("b.csv", ",".join(["a"] * 200_000))):
        assert "columns, and no more than 10000 are read" in refusal(write(tmp_path, name, content + "\n"))
    row = json.dumps(dict.fromkeys(names, 1))
    assert "line 2 is one too many: the rows have 10002" in refusal(write(tmp_path, "a.jsonl", f'{{"a": 1}}\n{row}'))
    pq.write_table(pa.table({name: [1] for name in names}), tmp_path / "a.parquet")
    assert "has 10001 columns" in refusal(tmp_path / "a.parquet")


def test_long_fields_are_fine(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "a" * 200_000 + ",x\n")
    assert len(read_table(path)[0]["text"]) == 200_000


# --- JSON ----------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path):
    content = '\ufeff{"text": "a", "label": 1}\n\n{"label": 2, "more": [1]}\r\n{"text": "\\ud83d\\ude00", "label": 3}\n'
    assert rows_of(write(tmp_path, "a.jsonl", content)) == [
        {"text": "a", "label": 1, "more": None},
        {"text": None, "label": 2, "more": [1]},
        {"text": "😀", "label": 3, "more": None},
    ]
    assert rows_of(write(tmp_path, "a.ndjson", content), columns=["label", "text"])[1] == {"label": 2, "text": None}
    assert rows_of(write(tmp_path, "a.json", content))[0]["label"] == 1


def test_a_column_that_begins_with_nulls(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_BATCH", 2)
    lines = [{"text": None, "label": 1}] * 4 + [{"text": "a", "label": 2.5}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert read_table(path)[4] == {"text": "a", "label": 2.5}


def test_json_array(tmp_path):
    assert rows_of(write(tmp_path, "a.json", '\n [{"a": 1},\n {"a": 2}]')) == [{"a": 1}, {"a": 2}]
    assert "line 1 is not valid JSON" in refusal(write(tmp_path, "b.json", '[{"a": 1},'))
    assert "row 1 is not an object" in refusal(write(tmp_path, "c.json", '[{"a": 1}, 2]'))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1}\n{"a": \n', "line 2 is not valid JSON"),
        ('{"a": 1}\n[1]\n', "line 2 is not an object"),
        ("[" * 100_000, "line 1 is not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "line 1 is not valid JSON"),
        ('{"a": "\\uD800"}', "line 1 is not valid JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is not UTF-8 text"),
        ("\n", "holds no rows"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", "row 0 holds lists or objects more than 50 deep"),
        ('{"a": ' + '{"a":' * 900 + "1" + "}" * 901, "row 0 holds lists or objects more than 50 deep"),
        ("\n".join(f'{{"key{row}": 1}}' for row in range(5000)), "line 4000 is one too many: the rows have 4000"),
        ("\n".join(f'{{"a": {{"{row}": 1}}}}' for row in range(5000)), "the objects in 'a' have"),
    ],
)
def test_json_errors(tmp_path, content, expected):
    assert expected in refusal(write(tmp_path, "a.jsonl", content))


def test_a_list_of_json_objects_without_common_keys_is_refused(tmp_path):
    rows = [{"meta": {f"key {number}": 1}} for number in range(5000)]
    message = refusal(write(tmp_path, "a.json", json.dumps({"data": rows})))
    assert "row 3499 is one too many: the objects in 'meta' have 3500 different keys" in message


def test_optional_keys_of_json_rows_are_fine(tmp_path, monkeypatch):
    monkeypatch.setattr(json_shape, "MAX_ABSENT", 1000)
    lines = [json.dumps({"text": "a", "meta": {f"key {row % 20}": 1}, "list": [{"b": row}] * 3}) for row in range(2000)]
    assert len(read_table(write(tmp_path, "a.jsonl", "\n".join(lines)))) == 2000


def test_json_column_that_no_row_has(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n{"label": 1}\n')
    assert "no column 'lable'; did you mean label? Valid: text, label" in refusal(path, columns=["text", "lable"])


@pytest.mark.parametrize("values", [[1, "a"], ["a", 1], [[1], 2], [10**30, 1]])
def test_json_column_of_mixed_values(tmp_path, values):
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps({"label": value}) for value in values))
    with pytest.raises(DataError, match="column 'label' mixes kinds of values"):
        read_table(path)


# --- Parquet and text ----------------------------------------------------------------------------------------


def test_parquet_keeps_types_and_class_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"text": ["a", None, "c"], "label": [1, 0, 1]}, features=features).to_parquet(path)
    assert read_table(path).features == features == table_features(path)
    assert read_table(path, columns=["label"]).features == Features({"label": features["label"]})
    assert rows_of(path)[1] == {"text": None, "label": 0}
    assert rows_of(path, columns=["label"]) == [{"label": 1}, {"label": 0}, {"label": 1}]
    assert "no column 'labels'; did you mean label?" in refusal(path, columns=["labels"])


def test_parquet_dictionary_columns_become_plain(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": pa.array(["x", "y", "x"]).dictionary_encode()}), path)
    assert rows_of(path) == [{"label": "x"}, {"label": "y"}, {"label": "x"}]


def test_parquet_errors(tmp_path):
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"text": ["a" * 50] * 100}), good, compression="snappy")
    damaged = bytearray(good.read_bytes())
    assert "is damaged" in refusal(write(tmp_path, "a.parquet", bytes(damaged[:-20])))
    assert "is damaged" in refusal(write(tmp_path, "b.parquet", b"text,label\n"))
    assert "is damaged" in refusal(write(tmp_path, "c.parquet", b""))
    damaged[4:40] = b"\xff" * 36
    assert "is damaged" in refusal(write(tmp_path, "d.parquet", bytes(damaged)))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    assert "holds no rows" in refusal(tmp_path / "e.parquet")
    bad = pa.array([b"a\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "f.parquet")
    assert "is damaged" in refusal(tmp_path / "f.parquet")


def test_parquet_columns_that_datasets_cannot_hold(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet"):
        read_table(tmp_path / "a.parquet")
    for features in (b"{not json", b'{"info": {"features": {"a": []}}}'):
        odd = pa.schema([("a", pa.int64())], metadata={b"huggingface": features})
        pq.write_table(pa.table({"a": [1]}, schema=odd), tmp_path / "b.parquet")
        for read in (read_table, table_features):
            with pytest.raises(DataError, match="holds columns that cannot be used"):
                read(tmp_path / "b.parquet")


def test_plain_text_is_one_text_per_line(tmp_path):
    path = write(tmp_path, "a.txt", '\ufeffone, "two\r\n\n  \nthree\u2028 \nfour')
    assert rows_of(path) == [{"text": 'one, "two'}, {"text": "three\u2028 "}, {"text": "four"}]
    assert "holds no rows" in refusal(write(tmp_path, "b.txt", "\n"))
    assert "line 2 is not UTF-8" in refusal(write(tmp_path, "c.txt", b"a\n\xff\n"))


# --- any file ------------------------------------------------------------------------------------------------


def test_unknown_endings(tmp_path):
    message = refusal(write(tmp_path, "a.docx", b"words"))
    assert "valid endings: .csv, .tsv" in message and ".parquet" in message and "data.delimiter" in message
    assert "does not say what is in it" in refusal(write(tmp_path, "a.gz", b""))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_missing_files(tmp_path, suffix):
    write(tmp_path, f"train{suffix}", "a")
    assert f"no such file; did you mean train{suffix}?" in refusal(tmp_path / f"trian{suffix}")
    assert "no such file" in refusal(tmp_path / "nowhere" / f"a{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert f"folder{suffix}: " in refusal(tmp_path / f"folder{suffix}")


def test_a_failing_disk_is_not_the_users_fault(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(encodings, "open_bytes", fails)
    with pytest.raises(StorageError, match="Input/output error"):
        read_table(write(tmp_path, "a.csv", "a\n1\n"))


def test_features_without_reading_everything(tmp_path):
    path = write(tmp_path, "a.csv", b"text,label\na,x\n" + b"b,y\n" * 100_000 + b"\xff")
    assert table_features(path) == Features({"text": Value("string"), "label": Value("string")})
    assert table_features(write(tmp_path, "a.jsonl", '{"a": 1}')) is None
    with pytest.raises(DataError, match="is empty"):
        table_features(write(tmp_path, "b.csv", ""))


@pytest.mark.parametrize("name", [long("a.csv"), "a.jsonl", long("a.txt")])
def test_streaming_takes_bounded_memory(tmp_path, name):
    texts, path = [f"row {index} {'x' * 200}" for index in range(20_000)], tmp_path / name
    header = "text\n" if name == "a.csv" else ""
    path.write_text(header + "".join((json.dumps({"text": t}) if "json" in name else t) + "\n" for t in texts))
    del texts
    tracemalloc.start()
    count = sum(len(batch["text"]) for batch in iter_rows(path, batch_size=100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1_000_000 < path.stat().st_size


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("train.csv", "train"),
        ("a.b.JSONL", "a.b"),
        ("t.tsv.gz", "t"),
        ("t.parquet", "t"),
        ("t.gz", None),
        ("README.md", None),
    ],
)
def test_table_stem(name, stem):
    assert table_stem(name) == stem
