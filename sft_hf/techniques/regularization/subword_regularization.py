"""Subword regularization: random tokenizations of the same words."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from sft_hf.core.errors import RecipeError
from sft_hf.tasks.text.subwords import Subwords, beside_tokens
from sft_hf.techniques.base import Context, Technique
from sft_hf.techniques.regularization.settings import SubwordRegularizationSettings


def chosen(possible: np.ndarray, probability: float, room: int, generator: np.random.Generator) -> np.ndarray:
    """Return which tokens to split, bool [tokens]: each possible one with `probability`, but at most `room`."""
    drawn = np.flatnonzero((generator.random(len(possible)) < probability) & possible)
    if len(drawn) > room:
        drawn = generator.choice(drawn, room, replace=False)
    found = np.zeros(len(possible), dtype=bool)
    found[drawn] = True
    return found


class SubwordRegularization(Technique[SubwordRegularizationSettings]):
    """Split random tokens into two tokens with the same spelling.

    Words stay the same, but their pieces change, which makes the model more robust to typing errors and rare words. The
    paper omits merges of BPE at random; here a token is split into two of the same vocabulary, which works for
    WordPiece, BPE and Unigram. Rows become longer, up to task.max_length.
    """

    paper = "I. Provilkov, D. Emelianenko and E. Voita, BPE-Dropout: Simple and Effective Subword Regularization, 2020"

    def __init__(self, settings: SubwordRegularizationSettings, context: Context) -> None:
        super().__init__(settings, context)
        if self.task.tokenizer is not None:  # None for word embeddings on a stream, which build it from texts later
            _ = self.subwords

    @property
    def task(self) -> Any:
        """The text task."""
        return self.context.task

    @cached_property
    def subwords(self) -> Subwords:
        """The splits of the vocabulary's tokens.

        Raises RecipeError for a vocabulary of whole words, whose parts have other meanings.
        """
        subwords = Subwords(self.task.tokenizer)
        if subwords.whole_words:
            raise RecipeError("techniques: subword_regularization: this vocabulary has only whole words; leave it out")
        return subwords

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """See `chosen` and `Subwords.splits`; fields that are aligned with the tokens are repeated with them."""
        ids = row["input_ids"]
        ways = [self.subwords.splits(int(one)) for one in ids]
        room = max(0, self.task.max_length - len(ids))
        split = chosen(np.array([bool(way) for way in ways]), self.settings.probability, room, generator)
        pieces: list[int] = []
        for number, way, is_split in zip(ids.tolist(), ways, split, strict=True):
            pieces += way[int(generator.integers(len(way)))] if is_split else (number,)
        along = {name: np.repeat(value, 1 + split) for name, value in beside_tokens(row).items()}
        return {**row, **along, "input_ids": np.asarray(pieces, dtype=ids.dtype)}
