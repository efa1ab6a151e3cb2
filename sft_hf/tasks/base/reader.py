"""The reader of a task: columns, new inputs and previews of rows. It needs no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.examples import Examples
from sft_hf.data.new_inputs.media import files_in_memory

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.data.new_inputs.inputs import Input


@dataclass(frozen=True)
class Preview:
    """A small, displayable version of a row.

    `text` is the text itself, or the name of a file; `content` is an image or a recording as bytes in the format
    `media_type` (image/jpeg, audio/ogg, ...), empty for texts.
    """

    text: str
    content: bytes = b""
    media_type: str = "text/plain"


class Reader(ABC):
    """Turns user input into rows, and rows into previews."""

    def __init__(self, data: DataSection) -> None:
        self.data = data

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Return the columns that the task reads from a source: {key of the recipe: column}."""

    def loaded_columns(self) -> dict[str, str]:
        """Return the columns that the task reads from loaded splits, in which several label columns are one."""
        found: dict[str, str] = {}
        for key, column in self.columns().items():
            is_label = key.startswith("data.label_column")
            found["data.label_column" if is_label else key] = self.data.target_column if is_label else column
        return found

    def texts(self, table: Dataset) -> list[list[str]] | None:
        """Return the columns of text that the model reads, [columns][rows]; None if rows are not texts."""
        return None

    @abstractmethod
    def preview(self, split: Dataset, indices: Sequence[int]) -> list[Preview]:
        """Return previews of the rows. Raises DataError for a file that no longer exists."""

    @abstractmethod
    def read_inputs(self, inputs: Sequence[Any], literal: bool = False) -> Iterable[list[Input]]:
        """Yield chunks of new rows for `predict` from texts, files and folders; bad inputs have an error.

        `literal`: every input is a text, even if there is a file of that name.
        """

    def inputs_in_memory(self, values: Iterable[Any]) -> Iterable[list[Input]]:
        """Yield chunks of new rows, one for each value from Python: texts, or paths and objects in place of files."""
        return files_in_memory(values, self.columns())

    @abstractmethod
    def prepare_inputs(self, rows: list[dict[str, Any]]) -> Examples:
        """Turn the columns of `read_inputs` into model inputs without references. Raises DataError, possibly later."""
