"""A long recording in overlapping parts, which a model hears one by one, and its answers to them joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sft_hf.tasks.speech.transcripts import Word, chunk_spans, merge_words, segments_of

OVERLAP = 1 / 6  # of a part, with the part before


class Part(NamedTuple):
    """Which input of `predict` a row is a part of, and which seconds of it."""

    input: int
    start: float
    end: float


def parts_of(durations: Sequence[float], length: float) -> list[Part]:
    """Return the parts, at most `length` seconds each, of recordings that last so many seconds."""
    return [
        Part(number, start, end)
        for number, seconds in enumerate(durations)
        for start, end in chunk_spans(seconds, length, length * OVERLAP)
    ]


def joined(
    parts: Sequence[Part],
    texts: Sequence[str],
    confidences: Sequence[float],
    words: Callable[[int], Sequence[Word]],
    timestamps: bool,
) -> list[dict[str, Any]]:
    """Return one answer per recording: `prediction`, `confidence`, and with `timestamps` its `segments`.

    Args:
        parts, texts, confidences: of each row; confidence is averaged over a recording's parts by their length.
        words: gives the words of a row, with their seconds from the start of its part.
        timestamps: whether segments are wanted.
    """
    by_input: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        by_input.setdefault(part.input, []).append(index)
    answers = []
    for indices in by_input.values():
        answer: dict[str, Any] = {"prediction": texts[indices[0]], "confidence": confidences[indices[0]]}
        if len(indices) > 1 or timestamps:
            heard = [_moved(words(index), parts[index].start) for index in indices]
            spans = [(parts[index].start, parts[index].end) for index in indices]
            whole = merge_words(heard, spans)
            if len(indices) > 1:
                weights = [end - start for start, end in spans]
                mean = np.average([confidences[index] for index in indices], weights=weights)
                answer = {"prediction": " ".join(word.text for word in whole), "confidence": float(mean)}
            if timestamps:
                answer["segments"] = segments_of(whole)
        answers.append(answer)
    return answers


def _moved(words: Sequence[Word], seconds: float) -> list[Word]:
    return [replace(word, start=word.start + seconds, end=word.end + seconds) for word in words]


COSTS_PER_SECOND = 100


def batching_cost(seconds: np.ndarray) -> np.ndarray:
    """Return what rows are batched by: frames of 10 ms."""
    return np.maximum(1, np.round(np.asarray(seconds) * COSTS_PER_SECOND)).astype(np.int64)
