"""Predictions as files: JSON lines and CSV for programs, plain text for reading, subtitles for players."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import click

from sft_hf.core.errors import DataError, UserError
from sft_hf.core.filesystem import aside, storage_errors, write_text

log = logging.getLogger("sft_hf")

FORMATS = ("jsonl", "json", "csv", "txt", "srt", "vtt")
SUBTITLES = ("srt", "vtt")
_TABLES = ("tsv", "tab", "parquet", "xlsx")
_PLACE = ("id", "path", "row", "table")  # optional keys at the start of a row: see `Input.described`
LISTED = 100  # maximum number of bad inputs to log if the output also lists them


def format_of(output: str | None, wanted: str | None) -> str:
    """Return the requested format, or the format of the output's file extension; otherwise JSON lines.

    Raises UserError for extensions of other table formats.
    """
    ending = Path(output or "").suffix.lower().lstrip(".")
    if wanted is None and ending in _TABLES:
        raise UserError(
            f"--output {output}: unsupported output format .{ending}; use .jsonl, .json, .csv or .txt "
            "(.srt, .vtt for speech)"
        )
    return wanted or (ending if ending in FORMATS else "jsonl")


def refuse_to_replace(inputs: Iterable[str], output: str | None) -> None:
    """Raise UserError if the output would overwrite an input."""
    if output is None or not os.path.exists(output):
        return
    for name in inputs:
        if os.path.exists(name) and os.path.samefile(name, output):
            raise UserError(f"--output {output}: is the input itself, which would be overwritten; name another file")


class Tally:
    """Counts the rows that pass through `counted`, and logs the bad ones."""

    def __init__(self, in_output: bool) -> None:
        """`in_output`: whether the output also contains the errors, so that not all need to be logged."""
        self.in_output = in_output
        self.answered = self.failed = 0

    def counted(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows unchanged."""
        for row in rows:
            if "error" not in row:
                self.answered += 1
            else:
                self.failed += 1
                if self.failed <= LISTED or not self.in_output:
                    log.warning("not answered: %s", row["error"])
            yield row

    def summary(self) -> str:
        """Return a line with the number of inputs that were not answered."""
        rest = "; the output has the reasons of all of them" if self.in_output and self.failed > LISTED else ""
        return f"{self.failed} of {self.answered + self.failed} inputs were not answered{rest}"


def write_predictions(rows: Iterable[dict[str, Any]], output: str | None, kind: str) -> None:
    """Write the rows of `sft_hf.jobs.inference.answers` as they arrive; to standard output if `output` is None.

    jsonl: one JSON object per line; json: one array of all objects; csv: see `_csv_lines`; txt: one prediction per
    line, blank for a bad input; srt, vtt: the subtitles of one recording, or for several a folder `output` with one
    file each. No file is left behind if writing fails. Raises UserError, DataError, StorageError.
    """
    if kind in SUBTITLES:
        _write_subtitles(rows, output, kind)
        return
    with _opened(output) as file:
        for piece in _pieces(rows, kind):
            # file names may contain bytes that are not valid text
            click.echo(piece.encode("utf-8", "backslashreplace").decode(), file, nl=False)


def _pieces(rows: Iterable[dict[str, Any]], kind: str) -> Iterator[str]:
    if kind == "json":
        before = "[\n"
        for row in rows:
            yield before + _json(row)
            before = ",\n"
        yield "\n]\n"
    elif kind == "csv":
        yield from _csv_lines(iter(rows))
    elif kind == "txt":
        for row in rows:
            answer = "" if row["prediction"] is None else row["prediction"]
            if isinstance(answer, dict):  # of several targets
                answer = [f"{name}: {number}" for name, number in answer.items()]
            text = ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
            yield " ".join(text.splitlines()) + "\n"  # a label may contain a line break
    else:
        for row in rows:
            yield _json(row) + "\n"


def _json(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False)
    return text if text.isascii() or _is_text(text) else json.dumps(row)


def _is_text(text: str) -> bool:
    """Return whether a string can be encoded as UTF-8, which fails for a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield a CSV table (RFC 4180): id, path, row, the input's columns, prediction, ..., error.

    Probabilities have one column per class; other lists and objects are JSON. Texts are written unchanged: spreadsheets
    read those that start with "=" as formulas unless the column is imported as text.
    """
    first = []
    for row in rows:
        first.append(row)
        if "error" not in row:  # an answered row has all columns
            break
    answered = _flat(first[-1])
    named = [name for one in first for name in _flat(one)]
    names = list(dict.fromkeys(["id", "path", "row", *answered, *named]))
    names = [*(name for name in names if name != "error"), "error"]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, restval="", extrasaction="ignore")
    writer.writeheader()
    for row in chain(first, rows):
        writer.writerow(_flat(row))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name == "probabilities":
            found |= {f"probability_{label}": probability for label, probability in value.items()}
        else:
            found[name] = _json(value) if isinstance(value, (list, dict)) else value
    return found


@contextmanager
def _opened(output: str | None) -> Iterator[IO[str] | None]:
    if output is None:
        yield None
        return
    path = Path(output)
    if path.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file")
    unfinished = aside(path)
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "w", encoding="utf-8", newline="") as file:
                yield file
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_subtitles(rows: Iterable[dict[str, Any]], output: str | None, kind: str) -> None:
    from sft_hf.tasks.speech.transcripts import format_subtitles

    rows = (row for row in rows if "error" not in row)  # `Tally` logs the others
    first = list(islice(rows, 2))
    if len(first) == 1 and not (output and Path(output).is_dir()):
        text = format_subtitles(first[0], kind)
        if output is None:
            click.echo(text, nl=False)
        else:
            write_text(Path(output), text)
        return
    if output is None or Path(output).suffix:
        asked = f"--output {output}" if output else f"--format {kind}"
        raise UserError(
            f"{asked}: there are several recordings; give a folder, such as --output subtitles/, for one file each"
        )
    written: dict[Path, str] = {}
    for row in chain(first, rows):
        recording = next(value for key, value in row.items() if key not in _PLACE)  # the input itself comes first
        path = Path(output) / f"{Path(recording).stem}.{kind}"
        if path in written:
            raise DataError(f"{recording}: its subtitles would replace those of {written[path]}; rename one of them")
        written[path] = recording
        write_text(path, format_subtitles(row, kind))
