"""The tokens of a vocabulary as parts of words: which tokens form a word, and which can be split into two others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte token of SentencePiece."""


class Subwords:
    """The tokens of a vocabulary as parts of words.

    Vocabularies mark words in one of these ways; without marks, every token is a word:

    - `##ing` continues a word (WordPiece);
    - "Ġ" or "▁" begins a word (byte-level BPE, SentencePiece);
    - `ing</w>` ends a word, `play@@` does not (character-level BPE).

    Attributes:
        special: bool [tokens], tokens that are not text ([CLS], </s>); the unknown token counts as text.
        whole_words: whether the vocabulary has only whole words, so that tokens cannot be split.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        self.names = [""] * (max(vocabulary.values()) + 1)  # some ids have no token
        for name, index in vocabulary.items():
            self.names[index] = name
        self.special = np.zeros(len(self.names), dtype=bool)
        others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "sep", "cls", "pad", "mask")}
        unknown = {tokenizer.unk_token_id} - others  # GPT-2 uses its end-of-text token
        self.special[[index for index in tokenizer.all_special_ids if index not in unknown]] = True
        backend = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
        self.whole_words = backend == "WordLevel"
        # A single token is not enough: GPT-2's vocabulary, whose words begin with "Ġ", also has Markdown headings (##).
        marks = {"WordLevel": "", "WordPiece": "##"}
        self.mark = marks[backend] if backend in marks else _mark_of(self.names)
        self._begins = np.array([self._begins_word(name) for name in self.names])
        self._ends = np.array([self._ends_word(name) for name in self.names])
        whole = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        self._known = {name: index for index, name in enumerate(self.names) if name and name not in whole}
        self._splits: dict[int, list[tuple[int, int]]] = {}

    def _begins_word(self, name: str) -> bool:
        if self.mark == "##":
            return not name.startswith("##")
        return name.startswith(self.mark) if self.mark in ("Ġ", "▁") else not self.mark

    def _ends_word(self, name: str) -> bool:
        return self.mark in ("</w>", "@@") and name.endswith(self.mark) == (self.mark == "</w>")

    def texts(self, ids: Sequence[int] | np.ndarray) -> list[list[list[int]]]:
        """Return the words of each text between special tokens, each as the list of its token positions.

        Args:
            ids: int [tokens] of a row: one text, or two separated by special tokens.
        """
        texts: list[list[list[int]]] = []
        before = None  # the token before this one, if it is text
        for place, token in enumerate(ids):
            if self.special[token]:
                before = None
                continue
            if before is None:
                texts.append([])
            if before is None or self._begins[token] or self._ends[before]:
                texts[-1].append([])
            texts[-1][-1].append(place)
            before = token
        return texts

    def splits(self, token: int) -> list[tuple[int, int]]:
        """Return the pairs of tokens that spell the same text as this one; empty if there are none."""
        if token not in self._splits:
            self._splits[token] = self._find_splits(self.names[token])
        return self._splits[token]

    def _find_splits(self, name: str) -> list[tuple[int, int]]:
        if self.whole_words or name not in self._known or BYTE.fullmatch(name):
            return []
        first = 3 if self.mark == "##" and name.startswith("##") else 1
        # The end of the left part and the start of the right part that join them into one word.
        joint = ("@@", "") if self.mark == "@@" else ("", "##") if self.mark == "##" else ("", "")
        pairs = ((name[:cut] + joint[0], joint[1] + name[cut:]) for cut in range(first, len(name)))
        known = self._known
        return [(known[left], known[right]) for left, right in pairs if left in known and right in known]


def _mark_of(names: Sequence[str]) -> str:
    """Return the mark that most tokens have, or ""."""
    counts = {
        "##": sum(name.startswith("##") and len(name) > 2 for name in names),
        "Ġ": sum(name.startswith("Ġ") for name in names),
        "▁": sum(name.startswith("▁") for name in names),
        "</w>": sum(name.endswith("</w>") for name in names),
        "@@": sum(name.endswith("@@") for name in names),
    }
    mark = max(counts, key=counts.__getitem__)
    return mark if counts[mark] else ""


def beside_tokens(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the fields of a row with one value per token of `input_ids`: attention mask, token types, ..."""
    shape = row["input_ids"].shape
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, np.ndarray) and value.shape == shape and name not in ("labels", "input_ids")
    }
