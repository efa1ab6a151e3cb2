"""Reading texts, one or a pair per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.data.examples import Examples
from sft_hf.data.new_inputs.inputs import Input, chunked
from sft_hf.data.new_inputs.texts import text_inputs, texts_in_memory
from sft_hf.tasks.base import Preview, Reader
from sft_hf.tasks.text.tokens import TOKENIZE_CHUNK, tokenize

if TYPE_CHECKING:
    from datasets import Dataset

PREDICT_ROWS, PREDICT_CHARACTERS = 8 * TOKENIZE_CHUNK, 2**24  # approximate limits of texts that are predicted together


class TextReader(Reader):
    """Turns texts into at most `max_length` tokens."""

    tokenizer: Any = None
    """The model's tokenizer; None until it is loaded."""

    max_length: int
    """Maximum number of tokens per row; set with the tokenizer."""

    def columns(self) -> dict[str, str]:
        """See `Reader.columns`."""
        data = self.data
        pair = {"data.text_pair_column": data.text_pair_column} if data.text_pair_column else {}
        return {"data.text_column": data.text_column, **pair, **data.label_columns}

    @property
    def text_columns(self) -> list[str]:
        """The text column, and for pairs the second text column."""
        data = self.data
        return [data.text_column] + ([data.text_pair_column] if data.text_pair_column else [])

    def preview(self, split: Dataset, indices: Sequence[int]) -> list[Preview]:
        """See `Reader.preview`: the text, and for pairs the second text below it."""
        rows = [split[int(index)] for index in indices]
        return [Preview("\n".join(str(row[column]) for column in self.text_columns)) for row in rows]

    def texts(self, table: Dataset) -> list[list[str]]:
        """See `Reader.texts`."""
        return [list(map(str, table[column])) for column in self.text_columns]

    def read_inputs(self, inputs: Sequence[Any], literal: bool = False) -> Iterator[list[Input]]:
        """See `Reader.read_inputs`: texts, tables, .txt files, and open files with one text per line."""
        found = text_inputs(inputs, self.data, self.text_columns, literal)
        return chunked(found, PREDICT_ROWS, PREDICT_CHARACTERS)

    def inputs_in_memory(self, values: Iterable[Any]) -> Iterator[list[Input]]:
        """See `Reader.inputs_in_memory`: texts, or pairs of texts."""
        return chunked(texts_in_memory(values, self.text_columns), PREDICT_ROWS, PREDICT_CHARACTERS)

    def prepare_inputs(self, rows: list[dict[str, Any]]) -> Examples:
        """See `Reader.prepare_inputs`."""
        columns = [[row[column] for row in rows] for column in self.text_columns]
        table, notes = tokenize(self.tokenizer, columns, self.max_length, "input")
        return Examples(table, table.lengths, np.arange(len(rows)), [], notes)
