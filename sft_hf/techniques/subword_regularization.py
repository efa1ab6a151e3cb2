"""Subword regularization: the same words in other pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sft_hf.recipe_sections import TechniqueSettings
from sft_hf.techniques.base import Context, Technique


def splits_of(token: str, vocabulary: Mapping[str, int], wordpiece: bool) -> list[tuple[int, int]]:
    """Return all pairs of tokens that spell a token together, as numbers, the first piece short to long.

    Args:
        token: as it stands in the vocabulary.
        vocabulary: token -> number.
        wordpiece: whether pieces that go on with a word are marked (`##`), instead of those that begin one.
    """
    own = "##" if wordpiece and token.startswith("##") else ""
    text = token[len(own) :]
    pairs = []
    for cut in range(1, len(text)):
        first, second = own + text[:cut], ("##" if wordpiece else "") + text[cut:]
        if first in vocabulary and second in vocabulary:
            pairs.append((vocabulary[first], vocabulary[second]))
    return pairs


def chosen(possible: np.ndarray, probability: float, room: int, generator: np.random.Generator) -> np.ndarray:
    """Return which tokens are split, bool [tokens]: each possible one at `probability`, but no more than `room`."""
    drawn = np.flatnonzero((generator.random(len(possible)) < probability) & possible)
    if len(drawn) > room:
        drawn = generator.choice(drawn, room, replace=False)
    found = np.zeros(len(possible), dtype=bool)
    found[drawn] = True
    return found


class SubwordRegularizationSettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["subword_regularization"] = "subword_regularization"
    probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Part of the tokens that are split in two, of those that can be."
    )


class SubwordRegularization(Technique[SubwordRegularizationSettings]):
    """Split some tokens into two that spell the same, others in each epoch.

    The word stays, its pieces change: the model learns what pieces mean, and is less at a loss with typing errors and
    rare words. The paper leaves out merges of BPE at random; here a token is split into two of the same vocabulary,
    which serves WordPiece, BPE and Unigram alike. Rows become longer, up to task.max_length.
    """

    Settings = SubwordRegularizationSettings
    paper = "I. Provilkov, D. Emelianenko and E. Voita, BPE-Dropout: Simple and Effective Subword Regularization, 2020"
    excluded = {
        "image_classification": "a picture has no tokens",
        "speech_recognition": "tokens are what is to be written there, and evaluation writes the usual ones",
    }
    example = {"probability": 0.5}
    neutral = {"probability": 0.0}

    def __init__(self, settings: SubwordRegularizationSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._splits: dict[int, list[tuple[int, int]]] = {}
        self._vocabulary: dict[str, int] | None = None

    def _splits_of(self, number: int) -> list[tuple[int, int]]:
        """Looked up once for each token; the vocabulary may come from the training texts, which are read by now."""
        tokenizer = self.context.task.tokenizer  # type: ignore[attr-defined]
        if self._vocabulary is None:
            special = set(tokenizer.all_special_ids)
            self._vocabulary = {token: one for token, one in tokenizer.get_vocab().items() if one not in special}
            self._tokens = {one: token for token, one in self._vocabulary.items()}
            self._wordpiece = any(token.startswith("##") for token in self._vocabulary)
        if number not in self._splits:
            token = self._tokens.get(number)
            found = [] if token is None else splits_of(token, self._vocabulary, self._wordpiece)
            self._splits[number] = found
        return self._splits[number]

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """See `splits_of` and `chosen`; fields that go along with the tokens are repeated with them."""
        ids = row["input_ids"]
        ways = [self._splits_of(int(one)) for one in ids]
        room = max(0, self.context.task.max_length - len(ids))  # type: ignore[attr-defined]
        split = chosen(np.array([bool(way) for way in ways]), self.settings.probability, room, generator)
        pieces: list[int] = []
        for number, way, is_split in zip(ids.tolist(), ways, split, strict=True):
            pieces += way[int(generator.integers(len(way)))] if is_split else (number,)
        along = {
            name: np.repeat(value, 1 + split)
            for name, value in row.items()
            if isinstance(value, np.ndarray) and value.shape == ids.shape and name not in ("labels", "input_ids")
        }
        return {**row, **along, "input_ids": np.asarray(pieces, dtype=ids.dtype)}
