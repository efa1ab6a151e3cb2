"""Tables whose rows are known, some of them damaged, for fuzz.py: what is read must be what was written.

A case is *valid* if an ordinary writer made it and the settings say what the file cannot (its encoding where it is not
Unicode, an unusual delimiter, the names of columns without a header). Its rows must be read exactly, or the file be
refused. A *broken* one was damaged afterwards, or something about it was not said: it may be refused; where it is
accepted, every row that the damage did not touch must be there, or counted in a note.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

from table_writers import Rows, as_columns, as_delimited, as_json, as_workbook, packed


def tables(generator: random.Random, folder: Path, tools: Path) -> str:
    """One table, written, perhaps damaged, and read."""
    write = generator.choice((as_delimited,) * 10 + (as_json,) * 6 + (as_workbook,) * 2 + (as_columns,) * 2)
    rows, (content, suffix, settings) = write(generator)
    expected = [(row["text"], str(row["label"])) for row in rows]
    valid, untouched = True, expected
    chance = generator.random()
    if suffix in (".csv", ".tsv", ".psv") and chance < 0.15:
        content, untouched, settings = _bad_rows(content, expected, settings, generator)
        valid = settings["on_bad_row"] == "skip"
        expected = untouched
    elif chance < 0.35:
        content, untouched, settings = _damaged(content, expected, settings, generator)
        valid = False
    name = f"train{suffix}"
    if generator.random() < 0.25:
        content, name = packed(content, name, generator)
        if not valid and generator.random() < 0.3:
            content, untouched = content[: len(content) // 2], []
    (folder / name).write_bytes(content)
    found, notes = _read(folder, name, settings, generator.random() < 0.2)
    if found is None:
        if valid and os.environ.get("SHOW_REFUSED"):
            print(notes, file=sys.stderr)
        return "valid refused" if valid else "broken refused"
    told = f"{name} {settings} {notes}"
    if valid:
        assert found == expected, f"{told}\nread {found}\nnot  {expected}"
        return "valid accepted"
    missing = _missing(found, untouched)
    assert not missing, f"{told}: lost {missing[:5]} of {len(expected)} rows; {len(found)} were read: {found[:60]}"
    return "broken accepted"


def _read(folder: Path, name: str, settings: dict[str, Any], streaming: bool) -> tuple[Any, list[str]]:
    """Return the rows of a file as (text, label), None where it is refused."""
    from datasets import Dataset

    from sft_hf.core.errors import UserError
    from sft_hf.core.recipe.sections import DataSection
    from sft_hf.core.sources.sources import resolve
    from sft_hf.data.loading.loading import load_splits

    section = DataSection(name=str(folder / name), streaming=streaming, **settings)
    columns = {"data.text_column": "text", "data.label_column": "label"}
    try:
        splits = load_splits(section, resolve(section.name, what="data set", key="data"), columns)
        train = splits.by_role["train"]
        rows = train.to_list() if isinstance(train, Dataset) else list(train)
    except UserError as error:
        message = str(error)
        assert message.strip() and "\n" not in message and len(message) < 4000, f"not one line: {message[:2000]!r}"
        return None, [message]
    return [(row["text"], str(row["label"])) for row in rows], splits.notes


def _missing(found: list[Any], untouched: list[Any]) -> list[Any]:
    """Return what of the rows that the damage left alone was not read, in this order."""
    missing, place = [], 0
    for row in untouched:
        try:
            place = found.index(row, place) + 1
        except ValueError:
            missing.append(row)
    return missing


def _bad_rows(content: bytes, rows: list[Any], settings: dict[str, Any], generator: random.Random) -> Any:
    """Add lines that are no rows: with too few or too many fields, or without a text."""
    import codecs

    encoding = next(
        (
            name
            for mark, name in (
                (codecs.BOM_UTF8, "utf-8"),
                (codecs.BOM_UTF32_LE, ""),
                (codecs.BOM_UTF16_LE, ""),
                (codecs.BOM_UTF16_BE, ""),
            )
            if content.startswith(mark)
        ),
        settings.get("encoding", "utf-8"),
    )
    settings = {**settings, "on_bad_row": generator.choice(("skip", "skip", "stop"))}
    if not encoding or content[:400].count(0):
        return content, rows, {**settings, "on_bad_row": "skip"}
    body = content.rstrip(b"\r\n")
    end = content[len(body) :][:2] or (b"\n" if b"\n" in content else b"\r")
    end = end if end == b"\r\n" else end[:1]
    bad = [generator.choice((b"alone", b"a,b,c,d,e,f,g", b"a\tb\tc\td\te\tf\tg", b"a;b;c;d;e;f;g")) for _ in range(3)]
    return body + end + end.join(bad) + end, rows, settings


def _damaged(content: bytes, rows: list[Any], settings: dict[str, Any], generator: random.Random) -> Any:
    """Damage a file; return it with the rows that must not get lost if it is read all the same."""
    kind = generator.choice(("cut", "flip", "quote", "quotes", "settings", "delete", "insert", "encoding"))
    data = bytearray(content)
    if kind == "cut":
        return bytes(data[: generator.randrange(len(data))]), [], settings
    if kind == "settings":
        odd = generator.choice(
            ({"text_column": "txet"}, {"delimiter": "|"}, {"encoding": "cp1252"}, {"quote_char": "'"})
        )
        odd = {**odd} if "text_column" not in odd else {"sheet": "nowhere"}
        return content, [], {**settings, **odd}
    if kind == "encoding":
        return content, rows, {key: value for key, value in settings.items() if key != "encoding"}
    if content[:2] == b"PK" or content[:4] in (b"PAR1", b"ARRO"):
        place = generator.randrange(len(data))
        data[place] ^= 1 << generator.randrange(8)
        return bytes(data), [], settings
    lines = content.split(b"\n")
    if kind in ("quote", "quotes") and len(lines) > 3 and not content[:400].count(0) and content[:1] not in b"[{":
        touched = sorted(generator.sample(range(1, len(lines) - 1), 1 if kind == "quote" else 2))
        lines[touched[0]] = b'"' + lines[touched[0]]
        if kind == "quotes":
            lines[touched[1]] = lines[touched[1]].rstrip(b"\r") + b'"'
        return b"\n".join(lines), _others(rows, touched, lines), settings
    place = generator.randrange(len(data))
    if kind == "delete":
        del data[place]
    elif kind == "insert":
        data.insert(place, generator.choice(b'",\t\n{}[];\\\x00a'))
    else:
        data[place] ^= 1 << generator.randrange(8)
    return bytes(data), [], settings


def _others(rows: list[Any], touched: list[int], lines: list[bytes]) -> list[Any]:
    """Rows that lie wholly outside of the touched lines; none where rows and lines do not correspond."""
    if len(lines) - 2 != len(rows):
        return []
    return [row for number, row in enumerate(rows, start=1) if number not in touched]


__all__ = ("Rows", "tables")
