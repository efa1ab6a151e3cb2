"""Tables whose rows are known, written by csv, pandas, json, openpyxl and pyarrow, for fuzz_tables.py.

A writer returns the bytes of a file, its ending, and the settings that describe it where it needs any.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zipfile
from typing import Any

Rows = list[dict[str, Any]]
Written = tuple[bytes, str, dict[str, Any]]

WORDS = {
    "ascii": "goal match team bank rate stock soup salt bread it's 50% #1 a/b x=1 NA 001 1e5 true (so) <b>".split(),
    "cp1252": "café naïve Straße Übung “so” 5€ señor".split(),
    "cp1251": "цена матч хлеб рынок соль гол".split(),
    "shift_jis": "試合 銀行 パン 価格 チーム".split(),
    "gb18030": "比赛 银行 面包 价格 球队 €".split(),
    "utf-8": "café 試合 хлеб 😀 naïve \u2028x مباراة a\u0301".split(" "),
}
QUOTED = ('"hello', 'hello"', 'the "best" one', '"', '"a" b', '5" disk', '""')
LABELS = (
    ("sport", "money", "food"),
    ("0", "1"),
    ("10", "2", "1"),
    ("very good", "bad"),
    ("A-1", "A-2"),
    ("x", "y", "é"),
)
TEXT_ENCODINGS = ("utf-8",) * 8 + ("utf-8-sig", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")
LEGACY = ("cp1252", "cp1251", "shift_jis", "gb18030", "latin-1")


def make_rows(generator: random.Random, words: str, quotes: bool, breaks: bool, marks: str) -> Rows:
    """Rows of an id, a text, a label and two columns that nobody needs."""
    labels = [label for label in generator.choice(LABELS) if words == "utf-8" or label.isascii()]
    rows: Rows = []
    for number in range(generator.choice((2, 3, 5, 12, 40))):
        parts = generator.choices([*WORDS["ascii"], *WORDS[words]], k=generator.choice((1, 2, 6, 15)))
        for odd in (QUOTED if quotes else ()), marks, ("\n", "\r\n", "\n\n", "\r") if breaks else ():
            if odd and generator.random() < 0.25:
                parts.insert(generator.randrange(len(parts) + 1), generator.choice(odd))
        text = " ".join(parts)
        label = labels[number % len(labels)] if number < len(labels) else generator.choice(labels)
        rows.append(
            {"id": number, "text": text, "label": label, "note": generator.choice(("", "n", "3")), "score": 0.5}
        )
    return rows


def as_delimited(generator: random.Random) -> tuple[Rows, Written]:
    """CSV, TSV and their like, by the csv module or by pandas."""
    encoding = generator.choice((*TEXT_ENCODINGS, *LEGACY))
    words = encoding if encoding in WORDS else "cp1252" if encoding == "latin-1" else "utf-8"
    words = generator.choice((words, "ascii"))
    mark, suffix = generator.choice(
        ((",", ".csv"),) * 3 + (("\t", ".tsv"),) * 3 + ((";", ".csv"), ("|", ".psv"), ("\t", ".txt"))
    )
    end = generator.choice(("\n", "\n", "\n", "\r\n", "\r\n", "\r"))
    style = generator.choice(("minimal", "all", "nonnumeric", "none", "none", "escaped", "pandas"))
    plain = style == "none"
    rows = make_rows(
        generator, words, True, not plain and generator.random() < 0.4, () if plain else (mark, ", ", "\\")
    )
    if encoding == "latin-1":
        rows = [{**row, "text": row["text"].encode("latin-1", "ignore").decode("latin-1") or "x"} for row in rows]
    if style == "escaped":  # one backslash, doubled, could be two
        rows = [{**row, "text": row["text"].replace("\\", "/")} for row in rows]
    if style in ("pandas", "minimal") and end == "\r":  # they do not quote the other line ends, nor read them back
        rows = [{**row, "text": row["text"].replace("\n", " ").replace("\r", " ")} for row in rows]
    if plain:
        for row in rows:
            row["text"] = row["text"].replace(mark, " ")
            if row["text"][:1] == row["text"][-1:] == '"':
                row["text"] += " x"  # by every rule the quotes around a whole field enclose it
    if end == "\r" or not plain:  # a line break of the other kind stays what it is inside quotes alone
        rows = [{**row, "text": row["text"].strip() or "x"} for row in rows]
    columns = generator.choice(
        (["text", "label"],) * 3 + (["label", "text"], ["id", "text", "label"], ["label", "id", "note", "text"])
    )
    settings: dict[str, Any] = {}
    if mark in ";|" and not (mark == "|" and suffix == ".psv"):
        settings["delimiter"] = mark
    if encoding in LEGACY:
        settings["encoding"] = encoding
    header = suffix == ".txt" or generator.random() < 0.85
    if not header:
        settings["column_names"] = columns
    if suffix == ".txt" and generator.random() < 0.5:
        settings["delimiter"] = mark
    text = (
        _pandas(generator, rows, columns, mark, end, header, settings)
        if style == "pandas"
        else _csv(rows, columns, mark, end, style, header)
    )
    if generator.random() < 0.1 and style != "pandas":
        text = text.rstrip("\r\n")
    elif generator.random() < 0.1:
        text += end * generator.choice((1, 3))
    return rows, (text.encode(encoding, errors="strict"), suffix, settings)


def _csv(rows: Rows, columns: list[str], mark: str, end: str, style: str, header: bool) -> str:
    if style == "none":
        lines = [mark.join(str(row[name]) for name in columns) for row in rows]
        return end.join([mark.join(columns)] * header + lines) + end
    quoting = {"all": csv.QUOTE_ALL, "nonnumeric": csv.QUOTE_NONNUMERIC}.get(style, csv.QUOTE_MINIMAL)
    options: dict[str, Any] = {"delimiter": mark, "lineterminator": end, "quoting": quoting}
    if style == "escaped":
        options |= {"quoting": csv.QUOTE_ALL, "doublequote": False, "escapechar": "\\"}
    sink = io.StringIO()
    writer = csv.writer(sink, **options)
    if header:
        writer.writerow(columns)
    writer.writerows([[row[name] for name in columns] for row in rows])
    return sink.getvalue()


def _pandas(
    generator: random.Random,
    rows: Rows,
    columns: list[str],
    mark: str,
    end: str,
    header: bool,
    settings: dict[str, Any],
) -> str:
    import pandas as pd

    index = header and generator.random() < 0.5
    return pd.DataFrame(rows)[columns].to_csv(sep=mark, index=index, header=header, lineterminator=end)


def as_json(generator: random.Random) -> tuple[Rows, Written]:
    """JSON of every shape."""
    import pandas as pd

    rows = make_rows(generator, "utf-8", True, generator.random() < 0.5, (",", "\\", "\t"))
    if generator.random() < 0.4:  # labels that are numbers
        rows = [{**row, "label": int(row["label"]) if row["label"].isdecimal() else row["label"]} for row in rows]
    if generator.random() < 0.4:  # columns that nobody needs, of mixed types
        odd = (1, "a", None, 2**63, 1.5, [1, "x"], {"a": 1}, [[]], float("nan"))
        rows = [{**row, "odd": generator.choice(odd), "other": generator.choice(odd)} for row in rows]
    shape = generator.choice(
        "lines lines array indented wrapper metadata deep columns split index records values list pretty-lines".split()
    )
    suffix = generator.choice((".jsonl", ".ndjson", ".json")) if shape == "lines" else ".json"
    ascii_only, settings = generator.random() < 0.5, {}
    indent = generator.choice((None, 2, "\t"))

    def dumped(value: Any, indent: Any = indent) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    end = generator.choice(("\n", "\r\n", "\n\n"))
    frame = pd.DataFrame([{name: row[name] for name in ("id", "text", "label", "score")} for row in rows])
    if shape == "lines":
        text = end.join(dumped(row, None) for row in rows) + end * generator.choice((0, 1))
    elif shape == "pretty-lines":
        text = "\n".join(dumped(row, 2) for row in rows)
    elif shape in ("array", "indented"):
        text = dumped(rows, None if shape == "array" else 2)
    elif shape == "wrapper":
        text = dumped({generator.choice(("data", "rows", "examples", "items")): rows})
    elif shape == "metadata":
        text = dumped({"version": "1.0", "count": len(rows), "tags": ["a"], "data": rows, "by": {"name": "x"}})
    elif shape == "deep":
        text = dumped({"result": {"items": rows, "next": None}})
    elif shape == "list":
        text = dumped({name: [row[name] for row in rows] for name in ("text", "label", "note")})
    else:
        text = frame.to_json(orient=shape, force_ascii=ascii_only)
        if shape == "values":
            settings["column_names"] = list(frame.columns)
    return rows, (text.encode(generator.choice(TEXT_ENCODINGS)), suffix, settings)


def as_workbook(generator: random.Random) -> tuple[Rows, Written]:
    """An .xlsx workbook, some with several sheets, a blank first row, or cells that are numbers."""
    import openpyxl

    rows = make_rows(generator, "utf-8", True, generator.random() < 0.4, (",", "\t"))
    for row in rows:
        row["text"] = row["text"].replace("\r\n", "\n").replace("\r", "\n")  # XML knows no other line ends
    book, settings = openpyxl.Workbook(), {}
    sheet = book.active
    if generator.random() < 0.3:
        sheet.append(["about", "this"])
        sheet.append(["made", "today"])
        sheet = book.create_sheet("Rows")
    if generator.random() < 0.3:
        book.create_sheet("Empty")
        settings = {"sheet": sheet.title}
    if generator.random() < 0.2:
        sheet.append([])
    columns = generator.choice((["text", "label"], ["id", "label", "text"], ["note", "text", "score", "label"]))
    sheet.append(columns)
    numbers = generator.random() < 0.5
    for row in rows:
        cells = [row[name] for name in columns]
        sheet.append([int(cell) if numbers and str(cell).isdecimal() and cell != "001" else cell for cell in cells])
        for cell in sheet[sheet.max_row]:
            if isinstance(cell.value, str):
                cell.data_type = "s"  # a text may begin with =
    sink = io.BytesIO()
    book.save(sink)
    return rows, (sink.getvalue(), ".xlsx", settings)


def as_columns(generator: random.Random) -> tuple[Rows, Written]:
    """Parquet and Arrow files, with columns of other types beside."""
    import pyarrow as pa
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    rows = make_rows(generator, "utf-8", True, True, (",", "\t"))
    table = pa.table({name: [row[name] for row in rows] for name in ("id", "text", "label", "score")})
    table = table.append_column("nested", pa.array([{"a": [number]} for number in range(len(rows))]))
    if generator.random() < 0.3:
        table = table.set_column(2, "label", table["label"].dictionary_encode())
    sink = io.BytesIO()
    suffix = generator.choice((".parquet", ".parquet", ".arrow", ".feather"))
    if suffix == ".parquet":
        pq.write_table(table, sink, compression=generator.choice(("snappy", "zstd", "none")))
    elif suffix == ".feather":
        feather.write_feather(table, sink)
    else:
        with generator.choice((pa.ipc.new_file, pa.ipc.new_stream))(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=generator.choice((1, 1000)))
    return rows, (sink.getvalue(), suffix, {})


def packed(content: bytes, name: str, generator: random.Random) -> tuple[bytes, str]:
    """Return a file compressed, or alone in an archive, and its name."""
    import pyarrow as pa

    kind = generator.choice(("gz", "gz", "bz2", "xz", "zst", "zip", "zip"))
    if name.endswith((".xlsx", ".parquet", ".arrow", ".feather", ".txt")):
        kind = "zip" if not name.endswith(".txt") else ""
    if kind == "zip":
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            if generator.random() < 0.5:
                archive.writestr("__MACOSX/._" + name, b"x")
                archive.writestr("README.md", b"# words")
            archive.writestr(generator.choice(("", "data/")) + name, content)
        return sink.getvalue(), generator.choice(("reviews.zip", name + ".zip"))
    if kind == "zst":
        return pa.Codec("zstd").compress(content, asbytes=True), name + ".zst"
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(kind)
    return (pack(content), f"{name}.{kind}") if pack else (content, name)
