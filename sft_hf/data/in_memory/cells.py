"""What makes the cell of a table of a picture or recording in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sft_hf.data.in_memory.pictures import picture_cell
from sft_hf.data.in_memory.recordings import recording_cell

MakeCell = Callable[[Any, str], "dict[str, Any] | None"]
"""Takes a value, and what messages call it; see `picture_cell` and `recording_cell`."""

CELLS: dict[str, MakeCell] = {"data.image_column": picture_cell, "data.audio_column": recording_cell}
"""By the recipe's key that names the column."""
