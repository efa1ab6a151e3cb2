"""Predictions as files: JSON lines for programs, plain text for reading, subtitles for players."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import click

from sft_hf.errors import DataError, UserError
from sft_hf.filesystem import aside, storage_errors, write_text

FORMATS = ("jsonl", "json", "txt", "srt", "vtt")
SUBTITLES = ("srt", "vtt")
_TABLES = ("csv", "tsv", "tab", "parquet", "xlsx")


def format_of(output: str | None, wanted: str | None) -> str:
    """Return the format that is asked for, or that the ending of the output's name says; else JSON lines.

    Raises UserError for the ending of a table, which would be read as one.
    """
    ending = Path(output or "").suffix.lower().lstrip(".")
    if wanted is None and ending in _TABLES:
        raise UserError(
            f"--output {output}: no .{ending} is written; end the name in .jsonl, .json or .txt (.srt, .vtt for speech)"
        )
    return wanted or (ending if ending in FORMATS else "jsonl")


def refuse_to_replace(inputs: Iterable[str], output: str | None) -> None:
    """Raise UserError where the output would take the place of an input."""
    if output is None or not os.path.exists(output):
        return
    for name in inputs:
        if os.path.exists(name) and os.path.samefile(name, output):
            raise UserError(f"--output {output}: is the input itself, which would be lost; name another file")


def write_predictions(rows: Iterable[dict[str, Any]], output: str | None, kind: str) -> None:
    """Write what `predict_inputs` yields as it comes; to standard output if `output` is None.

    jsonl: one JSON object a line; json: all of them in one array; txt: one prediction a line; srt, vtt: the subtitles
    of one recording, or for several a folder `output` with one file each.
    A failure half way leaves no file that looks whole. Raises UserError, DataError, StorageError.
    """
    if kind in SUBTITLES:
        _write_subtitles(rows, output, kind)
        return
    with _opened(output) as file:
        for piece in _pieces(rows, kind):
            click.echo(piece, file, nl=False)


def _pieces(rows: Iterable[dict[str, Any]], kind: str) -> Iterator[str]:
    if kind == "json":
        before = "[\n"
        for row in rows:
            yield before + json.dumps(row, ensure_ascii=False)
            before = ",\n"
        yield "\n]\n"
    elif kind == "txt":
        for row in rows:
            answer = row["prediction"]
            if isinstance(answer, dict):  # of several targets
                answer = [f"{name}: {number}" for name, number in answer.items()]
            text = ", ".join(answer) if isinstance(answer, list) else str(answer)
            yield " ".join(text.splitlines()) + "\n"  # a label may hold a line break
    else:
        for row in rows:
            yield json.dumps(row, ensure_ascii=False) + "\n"


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
            with open(unfinished, "w", encoding="utf-8") as file:
                yield file
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_subtitles(rows: Iterable[dict[str, Any]], output: str | None, kind: str) -> None:
    from sft_hf.speech.transcripts import format_subtitles

    rows = iter(rows)
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
        raise UserError(f"{asked}: there are several recordings; name a folder by --output, for one file each")
    written: dict[Path, str] = {}
    for row in chain(first, rows):
        recording = next(value for key, value in row.items() if key != "id")  # the input itself stands first
        path = Path(output) / f"{Path(recording).stem}.{kind}"
        if path in written:
            raise DataError(f"{recording}: its subtitles would replace those of {written[path]}; rename one of them")
        written[path] = recording
        write_text(path, format_subtitles(row, kind))
