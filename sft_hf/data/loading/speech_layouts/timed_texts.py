"""Transcripts with times: SubRip, WebVTT, Praat TextGrid, ELAN."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.loading.speech_layouts.rows import read_text

MAX_BYTES = 1 << 26  # of a transcript file
_ARROW = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[.,]\d+)")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
# Values in a TextGrid are the free-standing tokens: numbers, quoted strings, flags.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?!\S)|<(exists|absent)>')
_USUAL_TIERS = (
    "transcript",
    "transcription",
    "utterance",
    "utterances",
    "sentence",
    "sentences",
    "text",
    "ort",
    "speech",
    "orthography",
)


@dataclass(frozen=True)
class Segment:
    """The transcript from `start` to `end` seconds, and the speaker."""

    start: float
    end: float
    text: str
    speaker: str | None = None


def read_segments(path: Path, tier: str | None) -> list[Segment]:
    """Return the non-empty segments of a file, ordered by time.

    `tier`: which tier of a TextGrid or ELAN file to read, if there are several. Raises DataError for an invalid file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: is larger than {MAX_BYTES >> 20} MB, too large for a transcript")
    readers = {".srt": _cues, ".vtt": _cues, ".textgrid": _textgrid, ".eaf": _elan}
    found = readers[path.suffix.lower()](path, read_text(path), tier)
    return sorted((segment for segment in found if segment.text), key=lambda segment: segment.start)


def _cues(path: Path, text: str, tier: str | None) -> Iterator[Segment]:
    """SubRip and WebVTT: blocks with a line `start --> end`, optionally preceded by a number or a name."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        place = next((index for index, line in enumerate(lines) if "-->" in line), None)
        if place is None:
            continue  # WEBVTT, NOTE, STYLE, REGION
        times = _ARROW.search(lines[place])
        if times is None:
            raise DataError(f"{path}: {lines[place][:80]!r} is not a time like 00:00:01,000 --> 00:00:02,500")
        said = "\n".join(lines[place + 1 :])
        voice = _VOICE.search(said)
        plain = " ".join(html.unescape(_TAG.sub("", said)).split())
        yield Segment(_seconds(times[1]), _seconds(times[2]), plain, voice[1].strip() if voice else None)


def _seconds(clock: str) -> float:
    parts = [float(part) for part in clock.replace(",", ".").split(":")]
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def _textgrid(path: Path, text: str, tier: str | None) -> Iterator[Segment]:
    """Praat's long and short text formats, which have the same values in the same order."""
    values = [
        match[1].replace('""', '"') if match[1] is not None else float(match[2]) if match[2] else match[3]
        for match in _TOKEN.finditer(text)
    ]
    try:
        tiers = dict(_tiers(values))
    except (IndexError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is not a TextGrid in one of Praat's text formats") from error
    yield from tiers[_chosen(path, list(tiers), tier, "interval tiers")]


def _tiers(values: Sequence[Any]) -> Iterator[tuple[str, list[Segment]]]:
    place = 0

    def take(kind: type) -> Any:
        nonlocal place
        value = values[place]
        place += 1
        if not isinstance(value, kind):
            raise TypeError(value)
        return value

    if take(str) != "ooTextFile" or take(str) != "TextGrid":
        raise ValueError("another file of Praat's")
    take(float), take(float), take(str)
    for _ in range(int(take(float))):
        kind, name = take(str), take(str)
        take(float), take(float)
        intervals = []
        for _ in range(int(take(float))):
            start = take(float)
            end = take(float) if kind == "IntervalTier" else start
            intervals.append(Segment(start, end, " ".join(take(str).split())))
        if kind == "IntervalTier":
            yield name, intervals


def _elan(path: Path, text: str, tier: str | None) -> Iterator[Segment]:
    """ELAN's XML: time slots in milliseconds, and tiers of annotations between two of them."""
    from xml.etree import ElementTree

    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):  # entities can exhaust memory or refer to other files
        raise DataError(f"{path}: has a document type or entities, which no ELAN file has")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - a file with entities was refused
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is not valid XML: {error}") from error
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    tiers = {
        element.get("TIER_ID", ""): element
        for element in root.iter("TIER")
        if element.find("ANNOTATION/ALIGNABLE_ANNOTATION") is not None
    }
    top = {name: element for name, element in tiers.items() if element.get("PARENT_REF") is None}
    if tier is None and len(top) > 1 and len({element.get("PARTICIPANT") for element in top.values()}) == len(top):
        chosen = list(top)  # one for each speaker
    else:
        chosen = [_chosen(path, list(tiers) if tier else list(top or tiers), tier, "tiers with times")]
    for name in chosen:
        for annotation in tiers[name].iter("ALIGNABLE_ANNOTATION"):
            times = [slots.get(annotation.get(f"TIME_SLOT_REF{number}")) for number in (1, 2)]
            said = " ".join((annotation.findtext("ANNOTATION_VALUE") or "").split())
            if said and (times[0] is None or times[1] is None):
                raise DataError(f"{path}: {said[:40]!r} in tier {name!r} has no times; align it in ELAN")
            if said:
                yield Segment(
                    int(str(times[0])) / 1000, int(str(times[1])) / 1000, said, tiers[name].get("PARTICIPANT")
                )


def _chosen(path: Path, names: list[str], tier: str | None, kind: str) -> str:
    """Return the tier to read. Raises DataError if it is ambiguous or missing."""
    if tier is not None:
        if tier not in names:
            raise DataError(f"{path}: no tier {tier!r} (data.transcript_tier); {did_you_mean(tier, names)}")
        return tier
    usual = [name for name in names if name.lower() in _USUAL_TIERS]
    if len(names) == 1 or len(usual) == 1:
        return (usual or names)[0]
    if not names:
        raise DataError(f"{path}: has no {kind}")
    raise DataError(
        f"{path}: has several {kind}: {', '.join(names)}; say which holds the transcripts by data.transcript_tier"
    )
