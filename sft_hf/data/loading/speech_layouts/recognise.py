"""Which of the known layouts a folder of recordings has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from sft_hf.data.loading.speech_layouts.beside import transcripts_beside
from sft_hf.data.loading.speech_layouts.corpora import (
    common_voice,
    common_voice_table,
    librispeech,
    ljspeech,
    multilingual_librispeech,
)
from sft_hf.data.loading.speech_layouts.kaldi import kaldi
from sft_hf.data.loading.speech_layouts.nemo import nemo
from sft_hf.data.loading.speech_layouts.rows import Layout

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection


def corpus_layout(folder: Path, section: DataSection) -> Layout | None:
    """Return the layout of a corpus with a table or list of its own kind; None for any other folder."""
    readers = (common_voice, ljspeech, librispeech, multilingual_librispeech, kaldi, nemo)
    return next((layout for reader in readers if (layout := reader(folder, section))), None)


def table_layout(table: Path, section: DataSection) -> Layout | None:
    """Return the layout of a corpus whose table is given in place of its folder; None for any other table."""
    if section.column_names or section.delimiter or section.data_files:
        return None
    if table.stem == "metadata" and (layout := ljspeech(table.parent, section)):
        return layout
    if table.suffix == ".tsv" and section.audio_column != "path" and (layout := common_voice(table.parent, section)):
        read = common_voice_table(table, section)
        return Layout(layout.name, {section.train_split: read})
    return None


def folder_layout(folder: Path, section: DataSection, split_names: Collection[str]) -> Layout | None:
    """Return the layout of a folder without any table: transcripts next to the recordings."""
    return transcripts_beside(folder, section, split_names)
