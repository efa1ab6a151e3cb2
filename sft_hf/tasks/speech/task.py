"""Speech recognition with any model that `AutoModelForSpeechSeq2Seq` (Whisper, Moonshine, Speech2Text) or
`AutoModelForCTC` (Wav2Vec2, HuBERT, WavLM) supports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq

from sft_hf.core.console import progress
from sft_hf.core.errors import CheckpointError, DataError, UserError
from sft_hf.core.recipe.recipe import ModelSection
from sft_hf.core.recipe.registry import importing
from sft_hf.data.columns import column_values, read_row_ids
from sft_hf.data.examples import Examples
from sft_hf.data.tables.bad_rows import skipped_rows
from sft_hf.models.formats.ctranslate2 import transformers_source
from sft_hf.models.loading import open_checkpoint, opens
from sft_hf.tasks.base import Batch, Items, Task, vocabulary_digest
from sft_hf.tasks.scoring.confidence import Confidence
from sft_hf.tasks.speech.reader import SpeechReader
from sft_hf.tasks.speech.rows import COSTS_PER_SECOND, batching_cost
from sft_hf.tasks.speech.scorer import Reference, TranscriptScorer
from sft_hf.tasks.speech.settings import SpeechRecognitionSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.sources.sources import Source
    from sft_hf.data.findings import Finding
    from sft_hf.data.row_cache import RowCache
    from sft_hf.tasks.speech.family import Family

STREAM_SAMPLE = 1000  # rows of a stream from which the letter case of transcripts is learned


class SpeechRecognition(Task[SpeechRecognitionSettings]):
    """Transcribes recordings."""

    reader: SpeechReader
    scorer: TranscriptScorer
    family: Family
    learned_lengths: bool = False
    _train_where: str | None = None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        try:
            import jiwer  # noqa: F401
            import soundfile  # noqa: F401
            import soxr  # noqa: F401
        except (ImportError, OSError) as error:  # OSError: soundfile did not find libsndfile
            raise UserError(
                f"speech needs {getattr(error, 'name', None) or error}: pip install 'sft-hf[speech]'"
            ) from None
        self.reader = SpeechReader(recipe.data, self.settings)

    # --- model -----------------------------------------------------------------------------------------------

    def fit(self, train: Dataset, where: str, source: Source) -> None:
        """See `Task.fit`."""
        from datasets import IterableDataset

        self._open(source)
        column = self.recipe.data.transcription_column
        streamed = isinstance(train, IterableDataset)
        values = (row[column] for row in islice(train, STREAM_SAMPLE)) if streamed else train[column]
        texts = [value for value in values if isinstance(value, str)]
        self.family.learn_texts(texts, None if streamed else where)

    def _open(self, source: Source, trained: bool = False) -> None:
        source = transformers_source(source)
        self.config = open_checkpoint(AutoConfig, source, "config.json")
        kind: Callable[..., Family]
        if opens(AutoModelForSpeechSeq2Seq, self.config, source):
            with importing():
                from sft_hf.tasks.speech.seq2seq_family import Seq2SeqFamily as kind
        elif opens(AutoModelForCTC, self.config, source):
            with importing():
                from sft_hf.tasks.speech.ctc_family import CtcFamily as kind
        else:
            raise CheckpointError(
                f"{source.name}: a {self.config.model_type!r} model cannot recognize speech; give one that "
                "AutoModelForSpeechSeq2Seq (Whisper, Moonshine, ...) or AutoModelForCTC (Wav2Vec2, HuBERT, ...) opens"
            )
        self.family = self.reader.family = kind(self.config, source, self.settings, trained)
        self.scorer = TranscriptScorer(self.family, self.settings, self.recipe.data.group_column is not None)

    def identity(self) -> dict[str, Any]:
        """See `Task.identity`."""
        return {"vocabulary": vocabulary_digest(self.family.tokenizer)}

    def build_model(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """See `Task.build_model`."""
        return self.family.build(transformers_source(source), section)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """See `Task.save`."""
        self.scorer.confidence.write(model.config)
        self.family.save(model, folder)

    @classmethod
    def restore(cls, recipe: Recipe, folder: Path) -> tuple[Task[Any], PreTrainedModel]:
        """See `Task.restore`."""
        from sft_hf.core.sources.sources import resolve
        from sft_hf.tasks.restore import build_trained

        source = replace(resolve(str(folder)), trusted=recipe.model.trust_remote_code)
        task = cls(recipe)
        task._open(source, trained=True)
        task.family.recall(task.config)
        task.scorer.confidence = Confidence.of(task.config)
        task.learned_lengths = True
        return task, build_trained(task, recipe, source)

    # --- data ------------------------------------------------------------------------------------------------

    def prepare(self, split: Dataset, where: str) -> Examples:
        """See `Task.prepare`. Every recording is decoded once, so that bad recordings are found before training."""
        from sft_hf.tasks.speech.preparation import Preparation, PreparedRow
        from sft_hf.tasks.speech.rows import ClipStore, Recordings, SpeechRows

        data, augmentation = self.recipe.data, self._augmentation()
        if not self.learned_lengths:
            self._train_where = where
        preparation = Preparation(self.family, self.settings, data.transcription_column, where == self._train_where)
        clips = Recordings(split, data.audio_column)
        store = ClipStore(
            clips, self.family.rate, self.family.extract, keep_samples=bool(augmentation), disk=self._feature_cache
        )
        texts, row_ids = list(column_values(split, data.transcription_column)), read_row_ids(split)
        good: dict[int, PreparedRow] = {}
        bad: list[str] = []
        for index in progress(range(len(split)), f"reading {where}", len(split)):
            try:
                good[index] = preparation.row(store, index, texts[index])
            except DataError as error:
                message = f"{where} row {row_ids[index]}: {error}"
                if data.on_bad_row != "skip":
                    raise DataError(f"{message} (data.on_bad_row: skip leaves such rows out)") from error
                bad.append(message)
        if not good:
            raise DataError(f"{where}: none of its rows can be used; the first: {bad[0]}")
        if self._feature_cache is not None:
            self._feature_cache.flush()
        notes = [*skipped_rows(where, bad, len(split)), *preparation.notes(where)]
        chosen = list(good)
        store = store.only(chosen)
        row_ids, lengths = row_ids[chosen], np.asarray([row.seconds for row in good.values()])
        labels = [row.labels for row in good.values()]
        if not self.learned_lengths:
            notes += self.family.learn_lengths(lengths, labels)
            self.learned_lengths = True
        groups = list(column_values(split, data.group_column)) if data.group_column else [None] * len(split)
        references = [
            Reference(row.reference, None if groups[index] is None else str(groups[index]))
            for index, row in good.items()
        ]

        def views(name: str, epoch: int) -> SpeechRows:
            seeds = [(self.recipe.seed, epoch, int(row_id)) for row_id in row_ids]
            return SpeechRows(store, lengths, labels, augmentation if name == "train" else None, seeds)

        rows, blank = SpeechRows(store, lengths, labels), SpeechRows(store, lengths, labels, blank=True)
        return Examples(
            rows, batching_cost(lengths), row_ids, references, notes, views if augmentation else None, blank
        )

    def findings(self, examples: Mapping[str, Examples]) -> list[Finding]:
        """See `Task.findings`: transcripts without blanks, in which words cannot be counted."""
        from sft_hf.tasks.speech.preparation import transcript_findings

        return transcript_findings([reference.text for split in examples.values() for reference in split.references])

    @cached_property
    def _feature_cache(self) -> RowCache | None:
        gigabytes = self.row_cache_gigabytes
        return self.family.feature_cache(gigabytes) if gigabytes else None

    def _augmentation(self) -> Any:
        from sft_hf.tasks.speech.rows import Augmentation

        settings = self.settings
        factors, longest = tuple(settings.speed_factors), self.family.max_seconds
        return Augmentation(factors, settings.noise_snr_db, settings.noise_probability, longest)

    def collate(self, features: list[dict[str, Any]]) -> Batch:
        """See `Task.collate`."""
        return self.family.collate(features)

    # --- forward ---------------------------------------------------------------------------------------------

    def item_counts(self, batch: Batch) -> Tensor:
        """See `Task.item_counts`: label tokens, with a decoder including the end; for CTC, 1 for silence."""
        return (batch["labels"] >= 0).sum(dim=1).clamp(min=1).float()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each row's negative log-likelihood, summed over its label tokens, float32 [rows]."""
        return self.family.losses(model, batch)

    @property
    def model_kind(self) -> str:  # type: ignore[override]
        """See `Task.model_kind`."""
        return self.family.kind

    @property
    def no_items(self) -> str | None:  # type: ignore[override]
        """See `Task.no_items`."""
        return self.family.no_items

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """See `Task.items`: the tokens of the transcript and its end, each given the previous ones."""
        return self.family.items(model, batch)

    def as_embeddings(self, model: nn.Module, batch: Batch) -> tuple[str, Batch]:
        """See `Task.as_embeddings`: the spectrogram, or the samples."""
        return self.family.extractor.model_input_names[0], batch

    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Family.predict`; also `items` [rows], given labels."""
        outputs = self.family.predict(model, batch)
        return {**outputs, "items": self.item_counts(batch)} if "labels" in batch else outputs

    def answers_untrained(self) -> bool:
        """See `Task.answers_untrained`."""
        return self.family.answers_untrained

    def as_pretrained(self, examples: Examples) -> tuple[Examples, str]:
        """See `Task.as_pretrained`: Whisper processes every clip in its full window, as in pretraining."""
        from sft_hf.tasks.speech.rows import in_own_window

        return in_own_window(examples, self.family, self.measured_lengths(examples)[1])

    def measured_lengths(self, examples: Examples) -> tuple[str, np.ndarray]:
        """See `Task.measured_lengths`."""
        return "seconds", examples.lengths / COSTS_PER_SECOND

    def padding(self, examples: Examples, batches: Sequence[tuple[int, ...]]) -> float | None:
        """See `Task.padding`: Whisper pads a clip to its window, independent of the other clips."""
        seconds = self.measured_lengths(examples)[1]
        windows = self.family.window_lengths(seconds)
        return super().padding(examples, batches) if windows is None else 1.0 - float(seconds.sum() / windows.sum())
