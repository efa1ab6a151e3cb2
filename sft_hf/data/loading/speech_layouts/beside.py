"""Recordings with transcript files of the same name: clip.wav and clip.txt, or subtitles and annotations with times."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.loading.media import find_files
from sft_hf.data.loading.speech_layouts.rows import AUDIO_ENDINGS, Layout, Spoken, read_text, table_of
from sft_hf.data.loading.speech_layouts.timed_texts import read_segments

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.recipe.recipe import DataSection

PLAIN = (".txt", ".lab")
ENDINGS = (*PLAIN, ".srt", ".vtt", ".TextGrid", ".textgrid", ".eaf")


def transcripts_beside(folder: Path, section: DataSection, split_names: Collection[str]) -> Layout | None:
    """Recognize recordings with transcripts next to them, in one folder or in one for each split."""
    places = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name in split_names}
    places = places or {section.train_split: folder}
    splits = {}
    kinds = {}
    for name, place in places.items():
        recordings, _ = find_files(place, AUDIO_ENDINGS)
        counts = {ending: sum(_beside(path, ending) is not None for path in recordings) for ending in ENDINGS}
        ending = max(ENDINGS, key=lambda ending: counts[ending])  # on a tie, the first
        if counts[ending]:
            splits[name] = partial(_rows, place, recordings, ending, section)
            kinds[name] = ending, [other for other, count in counts.items() if count and other != ending]
    if not splits:
        return None
    notes = [
        f"{name}: transcripts are the {ending} files next to the recordings"
        + (f" (not {', '.join(others)})" if others else "")
        for name, (ending, others) in kinds.items()
    ]
    return Layout("recordings with transcripts next to them", splits, notes)


def _beside(recording: Path, ending: str) -> Path | None:
    names = (recording.with_suffix(ending), recording.with_name(recording.name + ending))
    return next((path for path in names if path.is_file()), None)


def _rows(place: Path, recordings: list[Path], ending: str, section: DataSection) -> tuple[Dataset, list[str]]:
    rows: list[Spoken] = []
    without, empty = [], []
    for recording in recordings:
        file = _beside(recording, ending)
        speaker = recording.parent.name if recording.parent != place else None
        if file is None:
            without.append(recording.name)
        elif ending in PLAIN:
            rows.append(Spoken(recording, " ".join(read_text(file).split()), speaker=speaker))
        else:
            segments = read_segments(file, section.transcript_tier)
            if not segments:
                empty.append(file.name)
            for segment in segments:
                if segment.end <= segment.start:
                    raise DataError(f"{file}: {segment.text[:40]!r} goes from {segment.start:g} to {segment.end:g} s")
                rows.append(Spoken(recording, segment.text, segment.start, segment.end, segment.speaker or speaker))
    notes = []
    if without:
        notes.append(f"{place}: {len(without)} recordings without a {ending} file left out: {first_few(without, 5)}")
    if empty:
        notes.append(f"{place}: {len(empty)} {ending} files without any text: {first_few(empty, 5)}")
    return table_of(rows, section, str(place)), notes
