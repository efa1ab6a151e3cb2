"""Findings about the data, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXAMPLES = 3
"""How many rows a finding names."""


@dataclass(frozen=True)
class Finding:
    """One line for the user: a note, or a warning, which a strict check fails on."""

    level: Literal["note", "warning"]
    text: str
