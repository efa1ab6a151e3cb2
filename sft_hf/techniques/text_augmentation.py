"""Words of a text left out, masked, or in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sft_hf.errors import RecipeError
from sft_hf.recipe_sections import TechniqueSettings
from sft_hf.techniques.base import Context, Technique

Probability = Annotated[float, Field(ge=0, le=1)]

MARKS = {"##": False, "Ġ": True, "▁": True}
"""What vocabularies mark pieces with, and whether that begins a word (BPE, Unigram) or goes on with it (WordPiece)."""


def words_of(tokens: Sequence[str], special: Sequence[bool], mark: str) -> list[list[int]]:
    """Return the places of each word's tokens; a special token is a word.

    Args:
        tokens: as they stand in the vocabulary.
        special: which of them are [CLS], </s> and the like.
        mark: of `MARKS`; "" for a vocabulary of whole words.
    """
    words: list[list[int]] = []
    for place, token in enumerate(tokens):
        begins = not mark or token.startswith(mark) == MARKS[mark]
        if special[place] or begins or not words or special[place - 1]:
            words.append([place])
        else:
            words[-1].append(place)
    return words


def rearranged(fixed: Sequence[bool], deletion: float, swap: float, generator: np.random.Generator) -> list[int]:
    """Return the words that stay, as they stand: some swapped with the next one, some left out, never all.

    Args:
        fixed: which words keep their place.

    Source: J. Wei and K. Zou, EDA: Easy Data Augmentation Techniques, 2019, section 2 (random swap, random deletion);
    swapped are neighbours alone, for which a text means the same more often.
    """
    order = list(range(len(fixed)))
    chances = generator.random((2, len(fixed)))
    place = 0
    while place + 1 < len(order):
        if chances[0, place] < swap and not fixed[place] and not fixed[place + 1]:
            order[place], order[place + 1] = order[place + 1], order[place]
            place += 1
        place += 1
    free = [word for word in order if not fixed[word]]
    kept = [word for word in free if chances[1, word] >= deletion]
    if free and not kept:
        kept = [free[int(generator.integers(len(free)))]]
    staying = set(kept)
    return [word for word in order if fixed[word] or word in staying]


class TextAugmentationSettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["text_augmentation"] = "text_augmentation"
    deletion: Probability = Field(0.1, description="Part of the words that is left out.")
    swap: Probability = Field(0.05, description="Part of the words that changes places with the next one.")
    masking: Probability = Field(
        0.0, description="Part of the words whose tokens become the tokenizer's mask (or unknown) token."
    )


class TextAugmentation(Technique[TextAugmentationSettings]):
    """Leave out, swap or mask some words of every text, others in each epoch.

    For few rows. Whole words are moved, with all their pieces. Where a single word decides ("not"), leaving it out
    makes a wrong label: take a smaller probability. It costs no time.
    """

    Settings = TextAugmentationSettings
    paper = "J. Wei and K. Zou, EDA: Easy Data Augmentation Techniques for Text Classification, 2019, section 2"
    excluded = {
        "image_classification": "a picture has no words; task.augmentation changes pictures",
        "speech_recognition": "the words are what is to be recognized; spec_augment changes recordings",
    }
    neutral = {"deletion": 0.0, "swap": 0.0, "masking": 0.0}

    def __init__(self, settings: TextAugmentationSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._read = False

    def _read_vocabulary(self) -> None:
        """Not before training: with word vectors, the vocabulary comes from the training texts."""
        tokenizer = self.context.task.tokenizer  # type: ignore[attr-defined]
        vocabulary = tokenizer.get_vocab()
        self.tokens = {number: token for token, number in vocabulary.items()}
        self.special = set(tokenizer.all_special_ids)
        pieces = [token for token, number in vocabulary.items() if number not in self.special]
        self.mark = next((mark for mark in MARKS if any(token.startswith(mark) for token in pieces)), "")
        self.mask = next((one for one in (tokenizer.mask_token_id, tokenizer.unk_token_id) if one is not None), None)
        if self.settings.masking and self.mask is None:
            raise RecipeError("techniques: text_augmentation: masking: the tokenizer has no mask or unknown token")
        self._read = True

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """See `rearranged`; every field that goes along with the tokens is rearranged with them."""
        if not self._read:
            self._read_vocabulary()
        ids = np.array(row["input_ids"])
        special = [int(one) in self.special for one in ids]
        words = words_of([self.tokens.get(int(one), "") for one in ids], special, self.mark)
        fixed = [special[word[0]] for word in words]
        hidden = generator.random(len(words)) < self.settings.masking
        for word, hide, stays in zip(words, hidden, fixed, strict=True):
            if hide and not stays:
                ids[word] = self.mask
        order = rearranged(fixed, self.settings.deletion, self.settings.swap, generator)
        places = [place for word in order for place in words[word]]
        along = {
            name: value[places]
            for name, value in row.items()
            if isinstance(value, np.ndarray) and value.shape == ids.shape and name not in ("labels", "input_ids")
        }
        return {**row, **along, "input_ids": ids[places]}
