"""Which of the known layouts a folder of recordings has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.data.speech_layouts.beside import transcripts_beside
from sft_hf.data.speech_layouts.corpora import common_voice, librispeech, ljspeech, multilingual_librispeech
from sft_hf.data.speech_layouts.kaldi import kaldi
from sft_hf.data.speech_layouts.nemo import nemo
from sft_hf.data.speech_layouts.rows import Layout

if TYPE_CHECKING:
    from sft_hf.recipe import DataSection


def corpus_layout(folder: Path, section: DataSection) -> Layout | None:
    """Return the layout of a corpus with a table or list of its own kind; None for a folder that is none."""
    readers = (common_voice, ljspeech, librispeech, multilingual_librispeech, kaldi, nemo)
    return next((layout for reader in readers if (layout := reader(folder, section))), None)


def folder_layout(folder: Path, section: DataSection, split_names: Sequence[str]) -> Layout | None:
    """Return the layout of a folder without any table: transcripts beside the recordings."""
    return transcripts_beside(folder, section, split_names)
