"""Reading recordings: columns, previews, and new recordings, which are split if they are long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.examples import Examples
from sft_hf.data.loading.media import file_name
from sft_hf.data.new_inputs.media import input_chunks, refuse_literal
from sft_hf.tasks.base import Preview, Reader
from sft_hf.tasks.speech.rows import batching_cost
from sft_hf.tasks.speech.settings import SpeechRecognitionSettings
from sft_hf.tasks.speech.transcripts import Part, parts_of

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.data.new_inputs.inputs import Input
    from sft_hf.tasks.speech.family import Family

PREVIEW_SECONDS, PREVIEW_RATE = 30.0, 16_000  # of a preview
CTC_CHUNK_SECONDS = 20.0


class SpeechReader(Reader):
    """Turns recordings into the features of the model's family."""

    family: Family
    """The model's family; set when the pretrained model is loaded."""

    def __init__(self, data: DataSection, settings: SpeechRecognitionSettings) -> None:
        super().__init__(data)
        self.settings = settings

    def columns(self) -> dict[str, str]:
        """See `Reader.columns`."""
        data = self.data
        group = {"data.group_column": data.group_column} if data.group_column else {}
        return {
            "data.audio_column": data.audio_column,
            "data.transcription_column": data.transcription_column,
            **group,
        }

    def preview(self, split: Dataset, indices: Sequence[int]) -> list[Preview]:
        """See `Reader.preview`: the first `PREVIEW_SECONDS` in a compressed format that browsers support."""
        from sft_hf.tasks.speech.audio import encode_audio, read_audio
        from sft_hf.tasks.speech.rows import clip_of

        found = []
        for index in indices:
            clip = clip_of(split[int(index)][self.data.audio_column])
            last = min(clip.start + PREVIEW_SECONDS, math.inf if clip.end is None else clip.end)
            samples = read_audio(clip.recording, PREVIEW_RATE, start=clip.start, end=last)
            found.append(Preview(file_name(clip.recording), encode_audio(samples, PREVIEW_RATE), "audio/ogg"))
        return found

    def read_inputs(self, inputs: Sequence[Any], literal: bool = False) -> Iterable[list[Input]]:
        """See `Reader.read_inputs`: recordings, folders, and tables with paths relative to the table."""
        from sft_hf.tasks.speech.audio import find_audio

        refuse_literal(literal, "recordings")
        return input_chunks(inputs, self.data, self.data.audio_column, find_audio, ("audio", "video"))

    def prepare_inputs(self, rows: list[dict[str, Any]]) -> Examples:
        """See `Reader.prepare_inputs`. A long recording is split into several rows; `references` are their `Part`s."""
        from sft_hf.tasks.speech.audio import audio_info
        from sft_hf.tasks.speech.preparation import segment_seconds
        from sft_hf.tasks.speech.rows import Clip, ClipStore, SpeechRows, clip_of

        given = [clip_of(row[self.data.audio_column]) for row in rows]
        lengths = [segment_seconds(clip, audio_info(clip.recording)) for clip in given]
        parts = [
            Part(part.input, given[part.input].start + part.start, given[part.input].start + part.end)
            for part in parts_of(lengths, self.chunk_seconds())
        ]
        clips = [Clip(given[part.input].recording, part.start, part.end) for part in parts]
        seconds = np.array([part.end - part.start for part in parts])
        store = ClipStore(clips, self.family.rate, self.family.extract, budget=0)
        speech = SpeechRows(store, seconds, None, windows=self._predict_windows())
        return Examples(speech, batching_cost(seconds), np.arange(len(parts)), parts)

    def _predict_windows(self) -> tuple[float, ...] | None:
        from sft_hf.tasks.speech.whisper_window import whole_seconds

        limit, wanted = self.family.max_seconds, self.settings.predict_window
        if wanted == "buckets" and math.isfinite(limit):
            return whole_seconds(limit)
        return None if wanted == "auto" else (limit,)

    def chunk_seconds(self) -> float:
        """Return the length of the parts in which long recordings are transcribed.

        For Whisper, this is its full window, even if training used a shorter one, since cuts may split words.
        """
        limit = self.family.max_seconds
        wanted = self.settings.chunk_seconds or (limit if math.isfinite(limit) else CTC_CHUNK_SECONDS)
        return min(wanted, limit)
