"""Findings about the data, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXAMPLES = 3
"""Number of example rows in a finding."""


def counted(number: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "file"), counted(2, "hidden or system file")
    ('1 file', '2 hidden or system files')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Finding:
    """One line for the user: a note, or a warning, which makes a strict check fail."""

    level: Literal["note", "warning"]
    text: str
