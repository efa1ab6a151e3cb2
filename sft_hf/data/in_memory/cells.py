"""Functions that convert images and recordings in memory to table cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sft_hf.data.in_memory.pictures import picture_cell
from sft_hf.data.in_memory.recordings import recording_cell

MakeCell = Callable[[Any, str], "dict[str, Any] | None"]
"""Takes a value and its name for messages; see `picture_cell` and `recording_cell`."""

CELLS: dict[str, MakeCell] = {"data.image_column": picture_cell, "data.audio_column": recording_cell}
"""By the recipe key of the column."""
