"""Transcripts of long recordings: where to cut them, how to join what was written of the parts, subtitles.

Everything here is a pure function of words with times, in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_CUE_CHARACTERS = 84  # two lines of 42, as subtitles are usually set
MAX_CUE_SECONDS = 7.0
MAX_PAUSE_SECONDS = 1.5  # a longer silence ends a cue

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")  # noqa: RUF001 - full-width marks are meant
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Word:
    """A word and when it is said."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Cue:
    """A line of subtitles and when it shows."""

    start: float
    end: float
    text: str


def chunk_spans(duration: float, chunk: float, overlap: float) -> list[tuple[float, float]]:
    """Cut a recording into parts of at most `chunk` seconds, each `overlap` or more seconds into the one before.

    The last part is as long as the others, so that no word stands alone in it. Returns [(start, end)], in order.
    """
    assert 0 <= overlap < chunk
    if duration <= chunk:
        return [(0.0, duration)]
    count = -int(-(duration - overlap) // (chunk - overlap))
    step = (duration - chunk) / (count - 1)
    return [(index * step, min(index * step + chunk, duration)) for index in range(count)]


def spread_words(text: str, start: float, end: float) -> list[Word]:
    """Give the words of a text times between `start` and `end`, each as much as it has letters."""
    words = text.split()
    total = sum(len(word) for word in words)
    result, said = [], 0
    for word in words:
        begin = start + (end - start) * said / total
        said += len(word)
        result.append(Word(word, begin, start + (end - start) * said / total))
    return result


def merge_words(parts: Sequence[Sequence[Word]], spans: Sequence[tuple[float, float]]) -> list[Word]:
    """Join what was written of overlapping parts of a recording.

    Two neighbours have both heard the overlap. They are joined at the longest run of words that both wrote there: the
    first half of the run is the earlier part's, the rest the later's, since words near a cut are the least sure. Where
    they agree on no word, each keeps what it wrote on its side of the overlap's middle.
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
    """Return how many words of `before` to keep and how many of `after` to skip."""
    low, high = overlap
    slack = 1.0  # times of words are only about right
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
    """Return (length, start in left, start in right) of the longest run of equal words; the last such in `left`."""
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


def cues_of(words: Sequence[Word]) -> list[Cue]:
    """Group words into subtitles: cut at pauses and ends of sentences, and before a cue grows too long to read."""
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
    """Return cues as SubRip."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    return "\n".join(blocks)


def format_vtt(cues: Sequence[Cue]) -> str:
    """Return cues as WebVTT (W3C), its special characters escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def format_subtitles(row: dict[str, Any], kind: str) -> str:
    """Return one answer of `predict` with its "segments" as a file: kind "srt" or "vtt"."""
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
