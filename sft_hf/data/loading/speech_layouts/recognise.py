"""Detection of the layout of a folder of recordings."""

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
    """Return the layout of a corpus with its own kind of table or list; None for other folders."""
    readers = (common_voice, ljspeech, librispeech, multilingual_librispeech, kaldi, nemo)
    return next((layout for reader in readers if (layout := reader(folder, section))), None)


def table_layout(table: Path, section: DataSection) -> Layout | None:
    """Return the layout of a corpus of which the table is given instead of the folder; None for other tables."""
    if section.column_names or section.delimiter or section.data_files:
        return None
    if table.stem == "metadata" and (layout := ljspeech(table.parent, section)):
        return layout
    if table.suffix == ".tsv" and section.audio_column != "path" and (layout := common_voice(table.parent, section)):
        read = common_voice_table(table, section)
        return Layout(layout.name, {section.train_split: read})
    return None


def folder_layout(folder: Path, section: DataSection, split_names: Collection[str]) -> Layout | None:
    """Return the layout of a folder without a table: transcripts next to the recordings."""
    return transcripts_beside(folder, section, split_names)
