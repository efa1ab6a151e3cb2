"""Broken tables, for fuzz.py."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

from fuzz_data import odd_settings, prepared
from mutations import mutate_bytes, mutate_text

CELLS = (
    *("", " ", "\x00", "a" * 300_000, '"', '""', '"a\nb"', "'", ",", ",,", "\t", "null", "NaN", "-1", "1e999", "{}"),
    *("[1, 2]", '["a", "b"]', '["a", 3]', "[[[[", "\ufeff", "\u202eabc", "é", "\U0001f600", "true", "0", "1", "1.0"),
    *("1.5", "sport", "b" * 3_000_000, "[" * 5000, '["' + "a" * 9 + '"]', "\r", "\x85", "\u2028", "=1+1", "é" * 70_000),
)


def rows(generator: random.Random, folder: Path, tools: Path) -> str:
    """A table: CSV, TSV, JSON lines, JSON or Parquet, some zipped."""
    suffix = generator.choice((".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".json", ".parquet", ".parquet"))
    table: list[dict[str, Any]] = [
        {"text": f"goal {number} match", "label": generator.choice(("sport", "money"))} for number in range(24)
    ]
    for _ in range(generator.choice((0, 0, 0, 1, 3))):
        table[generator.randrange(24)][generator.choice(("text", "label", "other"))] = generator.choice(CELLS)
    if suffix == ".parquet":
        content = parquet(table, generator)
    elif suffix in (".jsonl", ".json"):
        content = json_rows(table, generator, suffix)
    else:
        content = csv_rows(table, generator, "," if suffix == ".csv" else "\t")
    if generator.random() < 0.25:
        content = mutate_bytes(content, generator, header=len(content) if suffix != ".parquet" else 64)
    if suffix == ".parquet" and generator.random() < 0.3:  # its header stands at the end
        keep = max(0, len(content) - generator.choice((16, 400, 2000)))
        content = content[:keep] + mutate_bytes(content[keep:], generator, len(content))
    if generator.random() < 0.03:
        content = b""
    if suffix != ".parquet" and generator.random() < 0.1:
        content, suffix = gzip.compress(content), suffix + ".gz"
        content = mutate_bytes(content, generator) if generator.random() < 0.5 else content
    path = folder / f"train{suffix}"
    path.write_bytes(content)
    name = str(folder if generator.random() < 0.2 else path)
    settings: dict[str, Any] = {"name": "text_classification"}
    if generator.random() < 0.2:
        settings["problem_type"] = generator.choice(("single_label_classification", "multi_label_classification"))
    return prepared(tools, "text", generator, settings, name=name, **odd_settings(generator, 0.25))


def csv_rows(table: list[dict[str, Any]], generator: random.Random, separator: str) -> bytes:
    """The table as CSV without any quoting of its own, some rows ragged, in one of several encodings."""
    headers = (
        *(["text", "label"],) * 12,
        ["text", "text"],
        ["text", ""],
        ["label", "text"],
    )
    names = generator.choice(
        (*headers, ["text", "label", "other"], [""], ["text\x00", "label"], ["row_id", "text", "label"])
    )
    lines = [separator.join(str(row.get(name, "")) for name in names) for row in table]
    for _ in range(generator.choice((0, 0, 0, 0, 1, 3))):
        place = generator.randrange(24)
        lines[place] = generator.choice((lines[place] + separator, separator * 3, '"', "", '"a""b', lines[place] + '"'))
    end = generator.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    text = end.join([separator.join(names), *(lines if generator.random() < 0.95 else [])])
    return text.encode(generator.choice(("utf-8",) * 6 + ("utf-16", "latin-1", "utf-8-sig")), errors="replace")


def json_rows(table: list[dict[str, Any]], generator: random.Random, suffix: str) -> bytes:
    """The table as JSON, with values of odd types."""
    odd = [None, 1, 1.5, True, [], ["a"], {"a": 1}, {}, float("nan"), 10**30, -1, "x" * 10, [["a"]], ["a", 1], {"": 1}]
    odd += ["\ud800", "\x00", 2**63, [None], {"a": {"b": [1, "c"]}}, 1e308]
    column = generator.choice(("text", "label", "other", "row_id"))
    if generator.random() < 0.25:  # all of one kind
        value = generator.choice(odd)
        table = [{**row, column: value} for row in table]
    for _ in range(generator.choice((0, 0, 1, 3))):
        table[generator.randrange(24)][generator.choice(("text", "label", "", "other"))] = generator.choice(odd)
    if generator.random() < 0.15:
        del table[generator.randrange(24)][generator.choice(("text", "label"))]
    if generator.random() < 0.05:  # every row has a key of its own, or a great many
        many, place = generator.choice((24, 5000, 20_000)), generator.choice(("", "other"))
        keys = ({f"key {number}": 1} for number in range(many))
        table = [{**table[0], place: key} if place else {**table[0], **key} for key in keys]
    elif generator.random() < 0.02:
        table = [{**row, **{f"key {number}": 1 for number in range(20_000)}} for row in table[:2]]
    deep = generator.choice((50, 200, 900, 5000, 100_000))
    nested = generator.choice(("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep))
    if generator.random() < 0.1:
        table.insert(generator.choice((0, 5)), generator.choice(({}, [], 1, "x", None)))  # type: ignore[arg-type]
    lines = [json.dumps(row) for row in table]
    if generator.random() < 0.08:
        lines = [line[:-1] + f', "other": {nested}}}' if line.endswith("}") else line for line in lines]
    if suffix == ".json" and generator.random() < 0.8:
        return ("[" + generator.choice((",", ",\n")).join(lines) + "]").encode()
    return (json.dumps({"data": table}) if suffix == ".json" else "\n".join(lines)).encode()


def parquet(table: list[dict[str, Any]], generator: random.Random) -> bytes:
    """The table as Parquet, some with columns of odd types, or with what `datasets` says of them forged."""
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    plain: Any = [row["label"] for row in table]
    deep: Any = "a"
    for _ in range(generator.choice((2, 20, 90))):
        deep = [deep]
    day = datetime.datetime(2001, 1, 1)
    makers: tuple[Any, ...] = (
        *(lambda: pa.array(plain),) * 3,
        *(
            lambda value=value: pa.array([value] * 24)
            for value in (3, 1.5, None, ["a"], {"a": 1}, b"\xff", True, [], deep)
        ),
        *(
            lambda value=value: pa.array([value] * 24)
            for value in (day, day.date(), day.time(), decimal.Decimal("1.5"))
        ),
        lambda: pa.array(plain).dictionary_encode(),
        lambda: pa.array(plain, pa.large_string()),
        lambda: pa.array(plain, pa.string_view()),
        lambda: pa.array([[("a", 1)]] * 24, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([2**62] * 24, pa.timestamp("s")),
        lambda: pa.array([2**62] * 24, pa.duration("us")),
        lambda: pa.array([["a"]] * 24, pa.list_(pa.string(), 1)),
        lambda: pa.array([1.0] * 24, pa.float16()),
        lambda: pa.array([2**64 - 1] * 24, pa.uint64()),
        lambda: pa.array([i % 2 for i in range(24)], pa.int8()),
    )
    texts = [str(row["text"]).replace("\ud800", "") for row in table]
    columns = [pa.array(texts), generator.choice(makers)()]
    names = generator.choice((["text", "label"],) * 5 + (["text", "text"], ["", "label"], ["text", "row_id"]))
    if generator.random() < 0.15:
        columns[0] = generator.choice(makers)()
    made = pa.table(columns, names=names)
    if generator.random() < 0.4:
        made = made.replace_schema_metadata(forged_features(generator))
    sink = io.BytesIO()
    try:
        pq.write_table(made, sink, compression=generator.choice(("snappy", "none", "gzip", "zstd", "brotli")))
    except (pa.ArrowException, NotImplementedError):
        pq.write_table(pa.table({"text": texts, "label": plain}), sink)
    return sink.getvalue()


def forged_features(generator: random.Random) -> dict[str, str]:
    """What `datasets` writes into a Parquet file, with classes and types that the columns have not."""
    kinds: list[Any] = [
        {"names": ["sport", "money"], "_type": "ClassLabel"},
        {"names": [], "_type": "ClassLabel"},
        {"names": ["a", "a"], "_type": "ClassLabel"},
        {"num_classes": -1, "_type": "ClassLabel"},
        {"dtype": "string", "_type": "Value"},
        {"dtype": "int64", "_type": "Value"},
        {"dtype": "nonsense", "_type": "Value"},
        {"_type": "Image"},
        {"_type": "Audio"},
        {"_type": "Nonsense"},
        {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        {"shape": [2, 2], "dtype": "float32", "_type": "Array2D"},
        *([], None, 5, {}, "x", [{}]),
    ]
    features = {name: generator.choice(kinds) for name in ("text", "label") if generator.random() < 0.9}
    text = json.dumps({"info": {"features": features}})
    return {"huggingface": text if generator.random() < 0.8 else mutate_text(text, generator)}
