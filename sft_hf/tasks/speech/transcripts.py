"""Transcripts of long recordings: splitting into overlapping parts, merging their transcripts, subtitles.

All functions are pure functions of words with times, in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

OVERLAP = 1 / 6  # fraction of a part that overlaps with the previous part
MAX_CUE_CHARACTERS = 84  # two lines of 42, as is usual for subtitles
MAX_CUE_SECONDS = 7.0
MAX_PAUSE_SECONDS = 1.5  # a longer silence ends a cue

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")  # noqa: RUF001 - full-width marks are meant
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Word:
    """A word and its time."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Cue:
    """A line of subtitles and its time."""

    start: float
    end: float
    text: str


def chunk_spans(duration: float, chunk: float, overlap: float) -> list[tuple[float, float]]:
    """Split a recording into parts of at most `chunk` seconds that overlap by at least `overlap` seconds.

    All parts have the same length, so that the last one is not too short. Returns [(start, end)], in order.
    """
    assert 0 <= overlap < chunk
    if duration <= chunk:
        return [(0.0, duration)]
    count = -int(-(duration - overlap) // (chunk - overlap))
    step = (duration - chunk) / (count - 1)
    return [(index * step, min(index * step + chunk, duration)) for index in range(count)]


class Part(NamedTuple):
    """The input of `predict` that a row belongs to, and the row's start and end in it, in seconds."""

    input: int
    start: float
    end: float


def parts_of(durations: Sequence[float], length: float) -> list[Part]:
    """Return the parts, at most `length` seconds each, of recordings with these durations in seconds."""
    return [
        Part(number, start, end)
        for number, seconds in enumerate(durations)
        for start, end in chunk_spans(seconds, length, length * OVERLAP)
    ]


def spread_words(text: str, start: float, end: float) -> list[Word]:
    """Distribute the words of a text between `start` and `end`, in proportion to their numbers of letters."""
    words = text.split()
    total = sum(len(word) for word in words)
    result, said = [], 0
    for word in words:
        begin = start + (end - start) * said / total
        said += len(word)
        result.append(Word(word, begin, start + (end - start) * said / total))
    return result


def merge_words(parts: Sequence[Sequence[Word]], spans: Sequence[tuple[float, float]]) -> list[Word]:
    """Merge the transcripts of overlapping parts of a recording.

    Two neighbours are merged at the longest common run of words in their overlap: the first half of the run is taken
    from the earlier part, the rest from the later, since words near a cut are the least reliable. Without a common
    word, both are cut in the middle of the overlap.
    """
    merged: list[Word] = []
    for index, (part, span) in enumerate(zip(parts, spans, strict=True)):
        words = list(part)
        if not index:
            merged = words
            continue
        overlap = (span[0], spans[index - 1][1])
        kept, skipped = _joint(merged, words, overlap)
        merged = merged[:kept] + words[skipped:]
    return merged


def _joint(before: Sequence[Word], after: Sequence[Word], overlap: tuple[float, float]) -> tuple[int, int]:
    """Return the number of words of `before` to keep, and of `after` to skip."""
    low, high = overlap
    slack = 1.0  # times of words are approximate
    first = next((i for i, word in enumerate(before) if word.end > low - slack), len(before))
    last = next((i for i, word in enumerate(after) if word.start >= high + slack), len(after))
    left = [_bare(word.text) for word in before[first:]]
    right = [_bare(word.text) for word in after[:last]]
    length, i, j = _longest_common_run(left, right)
    if length:
        half = (length + 1) // 2
        return first + i + half, j + half
    middle = (low + high) / 2
    kept = next((i for i, word in enumerate(before) if (word.start + word.end) / 2 >= middle), len(before))
    skipped = next((i for i, word in enumerate(after) if (word.start + word.end) / 2 >= middle), len(after))
    return kept, skipped


def _bare(word: str) -> str:
    return _NOT_WORD.sub("", word).casefold() or word


def _longest_common_run(left: Sequence[str], right: Sequence[str]) -> tuple[int, int, int]:
    """Return (length, start in left, start in right) of the longest run of equal words; the last one in ties."""
    best = (0, 0, 0)
    lengths = [0] * (len(right) + 1)
    for i, word in enumerate(left):
        previous = 0
        for j, other in enumerate(right):
            current = lengths[j + 1]
            lengths[j + 1] = previous + 1 if word == other else 0
            previous = current
            if lengths[j + 1] and lengths[j + 1] >= best[0]:
                best = (lengths[j + 1], i + 1 - lengths[j + 1], j + 1 - lengths[j + 1])
    return best


def joined(
    parts: Sequence[Part],
    texts: Sequence[str],
    confidences: Sequence[float],
    words: Callable[[int], Sequence[Word]],
    timestamps: bool,
) -> list[dict[str, Any]]:
    """Return one prediction per recording: `prediction`, `confidence`, and with `timestamps` its `segments`.

    Args:
        parts, texts, confidences: of each row; confidence is averaged over a recording's parts by their length.
        words: returns the words of a row, with times relative to the start of its part.
        timestamps: whether to return segments.
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


def cues_of(words: Sequence[Word]) -> list[Cue]:
    """Group words into subtitles: cut at pauses and ends of sentences, and before a cue gets too long."""
    cues: list[Cue] = []
    line: list[Word] = []

    def close() -> None:
        if line:
            cues.append(Cue(line[0].start, max(word.end for word in line), " ".join(word.text for word in line)))
            line.clear()

    for word in words:
        if line:
            characters = sum(len(other.text) + 1 for other in line) + len(word.text)
            too_long = characters > MAX_CUE_CHARACTERS or word.end - line[0].start > MAX_CUE_SECONDS
            if too_long or word.start - line[-1].end > MAX_PAUSE_SECONDS:
                close()
        line.append(word)
        if _SENTENCE_END.search(word.text):
            close()
    close()
    return cues


def format_srt(cues: Sequence[Cue]) -> str:
    """Return cues in SubRip format."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    return "\n".join(blocks)


def format_vtt(cues: Sequence[Cue]) -> str:
    """Return cues in WebVTT format (W3C), with special characters escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def format_subtitles(row: dict[str, Any], kind: str) -> str:
    """Return the "segments" of a prediction as the text of a subtitle file: kind "srt" or "vtt"."""
    cues = [Cue(**segment) for segment in row["segments"]]
    return format_srt(cues) if kind == "srt" else format_vtt(cues)


def segments_of(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Return the cues of words as plain data: {"start", "end", "text"}, times rounded to milliseconds."""
    return [asdict(Cue(round(cue.start, 3), round(cue.end, 3), cue.text)) for cue in cues_of(words)]


def _clock(seconds: float, mark: str) -> str:
    milliseconds = max(0, round(seconds * 1000))
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
