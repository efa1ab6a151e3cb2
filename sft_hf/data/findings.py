"""Findings about the data, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXAMPLES = 3
"""Number of example rows in a finding."""


@dataclass(frozen=True)
class Finding:
    """One line for the user: a note, or a warning, which makes a strict check fail."""

    level: Literal["note", "warning"]
    text: str
