"""Preparation of rows with a recording and its transcript, with counts of all changes."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.findings import Finding
from sft_hf.tasks.speech.audio import audio_info
from sft_hf.tasks.speech.decoding import AudioInfo, describe
from sft_hf.tasks.speech.normalization import nfc

if TYPE_CHECKING:
    from sft_hf.tasks.speech.family import Family
    from sft_hf.tasks.speech.rows import Clip, ClipStore
    from sft_hf.tasks.speech.settings import SpeechRecognitionSettings

PAST_END_SECONDS = 0.1  # tolerance for segments that end after their recording, since tables round times
NAMED = 12  # maximum number of characters or files in a note
_UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True)
class PreparedRow:
    """A usable row: its duration in seconds, its label tokens, and the reference for predictions."""

    seconds: float
    labels: list[int]
    reference: str


@dataclass
class Preparation:
    """Checks the rows of one split; `notes` describes what was converted, left out or limited.

    Attributes:
        family: the recognizer, ready to encode transcripts.
        settings: of the task.
        column: name of the transcript column, for messages.
        training: whether the rows are training rows.
    """

    family: Family
    settings: SpeechRecognitionSettings
    column: str
    training: bool
    counts: Counter[str] = field(default_factory=Counter)
    rates: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    cut_off: list[str] = field(default_factory=list)

    def row(self, store: ClipStore, index: int, text: Any) -> PreparedRow:
        """Return the prepared row. Raises DataError for a row that cannot be used."""
        clip: Clip = store.clips[index]
        name = describe(clip.recording)
        written = self._transcript(name, text)
        info, seconds = self._duration(clip, name)
        labels = self._labels(name, written)
        fastest = max(self.settings.speed_factors) if self.training else 1.0
        if problem := self.family.refusal(store.features(index), labels, fastest):
            raise DataError(f"{name}: {problem}")
        self._count(info, clip, name)
        return PreparedRow(seconds, labels, nfc(written))

    def _transcript(self, name: str, text: Any) -> str:
        """Return a transcript in a form that the model can write."""
        if not isinstance(text, str):
            raise DataError(
                f"{name}: column {self.column!r} holds no transcript; give one, or an empty text for silence"
            )
        if found := self.family.special_tokens(text):
            if self.settings.special_tokens == "stop":
                raise DataError(
                    f"{name}: its transcript holds {found[0]}, which is a special token of the model, not text; "
                    "remove it, or set task.special_tokens: drop"
                )
            self.counts["special"] += 1
            text = self.family.without_special_tokens(text)
        if not text.strip():
            if self.settings.empty_transcripts == "stop":
                raise DataError(
                    f"{name}: column {self.column!r} holds no transcript; task.empty_transcripts: keep trains such "
                    "recordings as silence"
                )
            self.counts["empty"] += 1
            return ""
        return self.family.write(text)

    def _labels(self, name: str, written: str) -> list[int]:
        unknown = self.family.unknown_characters(written)
        if unknown:
            rule = self.settings.unknown_characters
            stopping = {"stop": unknown, "drop": set(), "auto": {c for c in unknown if self.training and _matters(c)}}[
                rule
            ]
            if stopping:
                named = first_few([repr(character) for character in sorted(stopping)], NAMED)
                raise DataError(
                    f"{name}: the model's vocabulary lacks {named} of its transcript {written[:40]!r}; "
                    "task.unknown_characters: drop leaves such characters out, task.vocabulary: train builds a new "
                    "vocabulary"
                )
            self.unknown.update(unknown)
            self.counts["unknown"] += 1
            kept = "".join(character for character in written if character not in unknown)
            labels = self.family.encode(" ".join(kept.split()))
        else:
            labels = self.family.encode(written) if written else []
        if written and not labels:
            raise DataError(
                f"{name}: none of the characters of its transcript {written[:40]!r} are in the model's vocabulary"
            )
        return labels

    def _duration(self, clip: Clip, name: str) -> tuple[AudioInfo, float]:
        limit = min(self.settings.max_seconds, self.family.max_seconds)
        whole = clip.end is None and not clip.start
        info = audio_info(clip.recording, limit if whole else None)
        seconds = segment_seconds(clip, info)
        if seconds > limit:
            lasts = f"more than {limit:g}" if info.more else f"{seconds:.1f}"
            raise DataError(f"{name}: lasts {lasts} s, at most {limit:g} (task.max_seconds)")
        most = self.family.max_seconds
        if self.training and seconds / min(self.settings.speed_factors) > most:
            if seconds / max(self.settings.speed_factors) > most:
                raise DataError(
                    f"{name}: lasts {seconds:.1f} s, and at all task.speed_factors longer than the {most:g} s window "
                    "of the model; add the factor 1.0"
                )
            self.counts["slowed"] += 1
        return info, seconds

    def _count(self, info: AudioInfo, clip: Clip, name: str) -> None:
        self.counts["rows"] += 1
        self.counts["segments"] += clip.end is not None or bool(clip.start)
        self.counts["channels"] += info.channels > 1
        self.counts["ffmpeg"] += info.decoder == "ffmpeg"
        if info.rate != self.family.rate:
            self.rates[info.rate] += 1
        if info.promised is not None:
            self.cut_off.append(f"{name} ({info.seconds:.1f} of {info.promised / info.rate:.1f} s)")

    def notes(self, where: str) -> list[str]:
        """Return notes on all changes, with counts."""
        counts, found = self.counts, []
        if counts["segments"]:
            found.append(f"{counts['segments']} of {counts['rows']} rows are segments of a recording")
        if self.rates:
            listed = ", ".join(f"{count} of {rate}" for rate, count in sorted(self.rates.items()))
            found.append(f"resampled to {self.family.rate} Hz: {listed} Hz")
        if counts["channels"]:
            found.append(f"channels averaged: {counts['channels']} recordings")
        if counts["ffmpeg"]:
            found.append(f"decoded by ffmpeg: {counts['ffmpeg']} recordings")
        if self.cut_off:
            named = first_few(self.cut_off, 3)
            found.append(
                f"{len(self.cut_off)} recordings are shorter than their header says, and were used as they are: {named}"
            )
        if counts["unknown"]:
            named = first_few([f"{one!r} ({n})" for one, n in self.unknown.most_common()], NAMED)
            found.append(
                f"{counts['unknown']} transcripts have characters that the tokenizer lacks, left out of training "
                f"(task.unknown_characters), and errors in the score as they are written: {named}"
            )
        if counts["special"]:
            found.append(f"special tokens left out of {counts['special']} transcripts (task.special_tokens: drop)")
        if counts["empty"]:
            found.append(f"{counts['empty']} recordings with an empty transcript are kept as silence")
        if counts["slowed"]:
            found.append(
                f"{counts['slowed']} clips are too long to be played at {min(self.settings.speed_factors):g} times "
                f"their speed in the {self.family.max_seconds:g} s window of the model; they get the factors that fit"
            )
        return [f"{where}: {note}" for note in found]


def segment_seconds(clip: Clip, info: AudioInfo) -> float:
    """Return the length of a clip in seconds. Raises DataError for a part outside of its recording."""
    name = describe(clip.recording)
    if clip.end is None and not clip.start:
        return info.seconds
    start, end = clip.start, info.seconds if clip.end is None else clip.end
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise DataError(
            f"{name}: its segment goes from {start:g} to {end:g} s; the start comes before the end, in seconds"
        )
    if end > info.seconds + PAST_END_SECONDS or start >= info.seconds:
        raise DataError(
            f"{name}: its segment goes from {start:g} to {end:g} s, and the recording lasts {info.seconds:.2f} s; "
            "times are in seconds. If each file is one segment already, set data.segment_columns: none"
        )
    return min(end, info.seconds) - start


def _matters(character: str) -> bool:
    """Whether a character is spoken: a letter, a digit or a mark, but not punctuation."""
    return unicodedata.category(character)[0] in "LMN"


def written_without_blanks(texts: Sequence[str]) -> bool:
    """Whether most transcripts are in a script without blanks between words (Chinese, Japanese, Thai, ...)."""
    written = [text for text in texts if text]
    unspaced = [
        text
        for text in written
        if unicodedata.name(text[len(text) // 2], "").startswith(_UNSPACED) and len(text.split()) == 1
    ]
    return len(unspaced) * 2 > len(written)


def transcript_findings(texts: Sequence[str]) -> list[Finding]:
    """Return a finding if the transcripts have no blanks, so that words cannot be counted."""
    if not texts or not written_without_blanks(texts):
        return []
    return [
        Finding(
            "note",
            "the transcripts have no blanks between words, so that 'wer' counts each of them as one word; 'cer' is the "
            "metric for such scripts (eval.metric_for_best_model: cer)",
        )
    ]
