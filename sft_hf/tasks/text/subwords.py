"""What a vocabulary says of its tokens: which of them make a word, and which spell the same as two others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte that SentencePiece has no character for."""


class Subwords:
    """The tokens of a vocabulary as parts of words.

    Vocabularies mark words in one of these ways; without any mark, every token is a word:

    - `##ing` goes on with a word (WordPiece);
    - "Ġ" or "▁" begin one (BPE on bytes, SentencePiece);
    - `ing</w>` ends one, `play@@` does not (BPE on characters).

    Attributes:
        special: bool [tokens], tokens that are not text ([CLS], </s>); the one of unknown words is text.
        whole_words: whether the vocabulary has nothing but words, so that no token has parts.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        self.names = [""] * (max(vocabulary.values()) + 1)  # some numbers have no token
        for name, index in vocabulary.items():
            self.names[index] = name
        self.special = np.zeros(len(self.names), dtype=bool)
        others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "sep", "cls", "pad", "mask")}
        unknown = {tokenizer.unk_token_id} - others  # GPT-2's is its end of a text too
        self.special[[index for index in tokenizer.all_special_ids if index not in unknown]] = True
        backend = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
        self.whole_words = backend == "WordLevel"
        # Not by a single token: GPT-2's vocabulary, whose words begin with "Ġ", has headings of Markdown (##) too.
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
        """Return the words between special tokens: for each stretch of text its words, each the places of its tokens.

        Args:
            ids: int [tokens], of a row: one text, or two with special tokens between them.
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
        """Return the pairs of known tokens that spell the same as this one; empty where there is none."""
        if token not in self._splits:
            self._splits[token] = self._find_splits(self.names[token])
        return self._splits[token]

    def _find_splits(self, name: str) -> list[tuple[int, int]]:
        if self.whole_words or name not in self._known or BYTE.fullmatch(name):
            return []
        first = 3 if self.mark == "##" and name.startswith("##") else 1
        # What the left part ends with, and the right one begins with, to be in one word.
        joint = ("@@", "") if self.mark == "@@" else ("", "##") if self.mark == "##" else ("", "")
        pairs = ((name[:cut] + joint[0], joint[1] + name[cut:]) for cut in range(first, len(name)))
        known = self._known
        return [(known[left], known[right]) for left, right in pairs if left in known and right in known]


def _mark_of(names: Sequence[str]) -> str:
    """The mark that most tokens have; "" for none."""
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
    """Return a row's fields that have a value for each token of `input_ids`: attention mask, token types, ..."""
    shape = row["input_ids"].shape
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, np.ndarray) and value.shape == shape and name not in ("labels", "input_ids")
    }
