"""Markdown with escaping, so that labels and other external text cannot break the layout."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

MOST_LETTERS = 80  # of a word or name from the data, which is truncated

# Characters with a meaning within a line, also on the Hub: emphasis, code, links, HTML, cells, formulas.
_SPECIAL = re.compile(r"([\\`*\[\]|~$#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", ":": "&#58;"}


def plain(value: Any, limit: int = MOST_LETTERS) -> str:
    """Return a value as one line without control and text direction characters, truncated to `limit` characters.

    >>> plain("two\\nlines")
    'two lines'
    """
    text = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter
        for letter in str(value)
        if not _hidden(letter)
    )
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _hidden(letter: str) -> bool:
    """Whether a character changes the text direction, or is a lone surrogate, which cannot be encoded."""
    return letter in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff" or (
        "\ud800" <= letter <= "\udfff"
    )


def escape(value: Any, limit: int = MOST_LETTERS) -> str:
    """Return a value as Markdown that is rendered literally, in a line or in a table cell; `(empty)` for nothing.

    >>> escape("<b>|*")
    '&lt;b&gt;\\\\|\\\\*'
    """
    text = plain(value, limit) or "(empty)"
    # Colons and at signs only where they would create a link or an emoji.
    text = re.sub(r"&|<|>|@|:(?=//|\w)", lambda found: _ENTITIES[found[0]], text)
    text = re.sub(r"(?i)\bwww\.", "www&#46;", text)
    return _SPECIAL.sub(r"\\\1", text.replace("&#", "\0")).replace("\0", "&#")


def code(value: Any, limit: int = 200) -> str:
    """Return a value as a code span. Not for tables, where a bar would end the cell.

    >>> code("a`b")
    '`` a`b ``'
    """
    text = plain(value, limit) or " "
    ticks = "`" * (_longest_ticks(text) + 1)
    space = " " if len(ticks) > 1 or text.startswith(" ") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def fenced(text: str, language: str) -> str:
    """Return a code block with a fence that does not occur in the text."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _longest_ticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, first column left-aligned, others right-aligned; cells must be Markdown."""
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def python_text(value: Any) -> str:
    """Return text as a Python literal in double quotes on one line, truncated to 300 characters."""
    return json.dumps(plain(value, 300), ensure_ascii=False)
