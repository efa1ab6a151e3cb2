"""Text augmentation: delete, mask or swap words."""

from __future__ import annotations

from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np

from sft_hf.core.errors import RecipeError
from sft_hf.tasks.text.subwords import Subwords, beside_tokens
from sft_hf.techniques.base import Context, Technique
from sft_hf.techniques.regularization.settings import TextAugmentationSettings


def rearranged(words: int, deletion: float, swap: float, generator: np.random.Generator) -> list[int]:
    """Return the indices of a text's words after random swaps of neighbours and deletions; at least one word stays.

    Source: J. Wei and K. Zou, EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification
    Tasks, 2019, section 2 (random swap, random deletion); only neighbours are swapped, which preserves the meaning more
    often.
    """
    order = list(range(words))
    chances = generator.random((2, words))
    place = 0
    while place + 1 < words:
        if chances[0, place] < swap:
            order[place], order[place + 1] = order[place + 1], order[place]
            place += 1
        place += 1
    return [word for word in order if chances[1, word] >= deletion] or [int(generator.integers(words))]


class TextAugmentation(Technique[TextAugmentationSettings]):
    """Delete, swap or mask random words of every text.

    For few rows. Whole words are changed, with all their pieces. If single words decide the label ("not"), deleting
    them makes wrong labels: use a smaller probability. No extra time per step.
    """

    paper = (
        "J. Wei and K. Zou, EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification "
        "Tasks, 2019, section 2"
    )

    def __init__(self, settings: TextAugmentationSettings, context: Context) -> None:
        super().__init__(settings, context)
        if self.tokenizer is not None and settings.masking:
            _ = self.mask

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; None for word embeddings on a stream, which build it from the texts later."""
        return getattr(self.context.task, "tokenizer", None)

    @cached_property
    def subwords(self) -> Subwords:
        """The word boundaries of the vocabulary's tokens."""
        return Subwords(self.tokenizer)

    @cached_property
    def mask(self) -> int:
        """The token id for masked words. Raises RecipeError if there is none."""
        tokenizer = self.tokenizer
        token: int | None = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        if token is None:
            raise RecipeError("techniques: text_augmentation: masking: the tokenizer has no mask or unknown token")
        return token

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """See `rearranged`, for each text of a pair; fields that are aligned with the tokens are changed with them."""
        settings, ids = self.settings, np.array(row["input_ids"])
        places: list[int] = []
        end = 0
        for words in self.subwords.texts(ids):
            places += range(end, words[0][0])  # the special tokens before this text
            end = words[-1][-1] + 1
            hidden = generator.random(len(words)) < settings.masking
            for word in compress(words, hidden):
                ids[word] = self.mask
            order = rearranged(len(words), settings.deletion, settings.swap, generator)
            places += [place for word in order for place in words[word]]
        places += range(end, len(ids))
        chosen = np.array(places, dtype=np.int64)
        along = {name: value[chosen] for name, value in beside_tokens(row).items()}
        return {**row, **along, "input_ids": ids[chosen]}
