"""Connectionist temporal classification (CTC): character vocabularies, losses, decoding and word times.

Source: A. Graves et al., Connectionist Temporal Classification, ICML 2006.
"""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Wav2Vec2CTCTokenizer

from sft_hf.tasks.speech.languages import change_case

CASES = ("keep", "lower", "upper")
UnicodeForm = Literal["NFC", "NFD"]
FORMS: tuple[UnicodeForm, ...] = ("NFC", "NFD")
WORD_DELIMITER = "|"
WORD_START = "\u2581"  # SentencePiece's mark at the start of a word
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", WORD_DELIMITER)
"""The first tokens of every vocabulary; `<pad>`, with id 0, is the blank."""


def characters_of(texts: Iterable[str]) -> list[str]:
    """Return the characters of the texts, sorted, without white space and the word delimiter."""
    found: set[str] = set()
    for text in texts:
        found.update(text)
    return sorted(character for character in found if not character.isspace() and character != WORD_DELIMITER)


def build_tokenizer(characters: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """Return a tokenizer with one token per character, `|` between words and `<pad>` as the blank."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *characters))}
    with tempfile.TemporaryDirectory() as folder:  # the class only takes a file
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path), word_delimiter_token=WORD_DELIMITER)


def known_characters(tokenizer: Any) -> set[str]:
    """Return the characters that a tokenizer can write: its tokens, or the characters of its word pieces."""
    tokens = set(tokenizer.get_vocab())
    if not _has_pieces(tokens):
        return tokens
    return {character for token in tokens - set(tokenizer.all_special_tokens) for character in token}


def _has_pieces(tokens: Iterable[str]) -> bool:
    return any(token.startswith(WORD_START) for token in tokens)


def choose_case(texts: Sequence[str], known: Iterable[str], language: str | None = None) -> str:
    """Return the case with the fewest characters outside a vocabulary: "keep" (preferred in ties), "lower" or "upper".

    `language`: code of the language whose rules for letter case apply.
    """
    vocabulary = set(known)

    def unknown(case: str) -> int:
        changed = (change_case(text, case, language) for text in texts)
        return sum(character not in vocabulary and not character.isspace() for text in changed for character in text)

    return min(CASES, key=unknown)


def choose_form(texts: Sequence[str], known: Iterable[str]) -> UnicodeForm:
    """Return the Unicode form with fewer characters outside a vocabulary: "NFC" (preferred in ties) or "NFD"."""
    vocabulary = set(known)

    def unknown(form: UnicodeForm) -> int:
        changed = (unicodedata.normalize(form, text) for text in texts)
        return sum(character not in vocabulary and not character.isspace() for text in changed for character in text)

    return min(FORMS, key=unknown)


def frames_needed(labels: Sequence[int]) -> int:
    """Return the minimum number of frames for these labels: one each, and a blank between two equal ones."""
    ids = np.asarray(labels)
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def ctc_losses(logits: Tensor, frames: Tensor, labels: Tensor, label_lengths: Tensor, blank: int) -> Tensor:
    """Return the negative log-likelihood of each row's labels, summed over all alignments, float32 [rows].

    Args:
        logits: [rows, longest, vocabulary].
        frames: int64 [rows], number of frames without padding.
        labels: int64 [rows, longest], padded with any value.
        label_lengths: int64 [rows].
        blank: id of the blank token.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    # cuDNN's version needs other types, and gives different results.
    with torch.backends.cudnn.flags(enabled=False):
        return functional.ctc_loss(
            log_probabilities, labels.clamp(min=0), frames, label_lengths, blank=blank, reduction="none"
        )


def best_path(logits: Tensor, frames: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most likely token of each frame, int64 [rows, longest], blank beyond the row's end; its
    log-probability, float32 [rows, longest]; and the confidence, float32 [rows].

    The confidence is the geometric mean of the probabilities of the frames that are not blank, or of all frames if all
    are blank. The tokenizer collapses repeats and drops blanks.
    """
    log_probabilities, tokens = functional.log_softmax(logits.float(), dim=-1).max(dim=-1)
    real = torch.arange(tokens.shape[1], device=tokens.device) < frames[:, None]
    tokens = torch.where(real, tokens, torch.full_like(tokens, blank))
    saying = tokens != blank
    counted = torch.where(saying.any(dim=1, keepdim=True), saying, real)
    mean = (log_probabilities * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return tokens, log_probabilities, mean.exp()


def word_times(tokenizer: Any, tokens: Sequence[int], seconds_per_frame: float) -> list[tuple[str, float, float]]:
    """Return (word, start, end) of the words of a best path, with times in seconds from its first frame."""
    if _has_pieces(tokenizer.get_vocab()):
        return _piece_times(tokenizer, tokens, seconds_per_frame)
    decoded = tokenizer.decode(tokens, output_word_offsets=True)
    return [
        (item["word"], item["start_offset"] * seconds_per_frame, item["end_offset"] * seconds_per_frame)
        for item in decoded["word_offsets"]
    ]


def _piece_times(tokenizer: Any, tokens: Sequence[int], seconds_per_frame: float) -> list[tuple[str, float, float]]:
    """Return `word_times` for word pieces, for which Transformers' tokenizers provide no times."""
    words: list[tuple[list[int], int, int]] = []  # pieces, first frame, frame after the last
    frame = 0
    for token, repeats in groupby(tokens):
        start, frame = frame, frame + len(list(repeats))
        if token == tokenizer.pad_token_id:
            continue
        if not words or str(tokenizer.convert_ids_to_tokens(token)).startswith(WORD_START):
            words.append(([], start, frame))
        pieces, start, _ = words[-1]
        words[-1] = ([*pieces, token], start, frame)
    # group_tokens: two equal pieces with a blank between them are two.
    texts = [str(tokenizer.decode(pieces, group_tokens=False)).strip() for pieces, _, _ in words]
    return [
        (text, start * seconds_per_frame, end * seconds_per_frame)
        for text, (_, start, end) in zip(texts, words, strict=True)
        if text
    ]
