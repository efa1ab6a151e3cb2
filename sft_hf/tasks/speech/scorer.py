"""Metrics and predictions of speech recognizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sft_hf.core.run.outputs import SplitOutputs
from sft_hf.data.examples import Examples
from sft_hf.tasks.base import Scorer
from sft_hf.tasks.saved_outputs import of_recogniser
from sft_hf.tasks.scoring.confidence import logits_of
from sft_hf.tasks.speech.normalization import nfc
from sft_hf.tasks.speech.settings import SpeechRecognitionSettings
from sft_hf.tasks.speech.transcripts import Part, joined

if TYPE_CHECKING:
    from sft_hf.tasks.speech.family import Family


class Reference(NamedTuple):
    """The reference transcript of a row, and the row's group."""

    text: str
    group: str | None = None


class TranscriptScorer(Scorer):
    """Metrics and predictions of a speech recognizer, from its `tokens`, int64 [rows, longest].

    Args:
        family: decodes the tokens.
        settings: of the task.
        grouped: whether to compute metrics per group of rows (data.group_column), too.
    """

    primary_metric = "wer"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "wer", "cer", "wer_normalized", "cer_normalized"})

    def __init__(self, family: Family, settings: SpeechRecognitionSettings, grouped: bool) -> None:
        super().__init__()
        self.family, self.settings, self.grouped = family, settings, grouped

    def metric_names(self) -> list[str]:
        """See `Scorer.metric_names`."""
        return ["wer", "cer", "wer_normalized", "cer_normalized", "exact_match", "loss"]

    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """See `Scorer.tune`: nothing to choose."""

    def normalizer(self) -> Callable[[str], str]:
        """Return the English normalizer for English, or if Whisper has no language; else `normalization.basic`."""
        from sft_hf.tasks.speech.normalization import normalizer

        code = self.family.language
        english = self.settings.task == "translate" or code == "en"
        english = english or (not code and getattr(self.family, "is_whisper", False))
        return normalizer(code, english, getattr(self.family.tokenizer, "english_spelling_normalizer", None))

    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """See `Scorer.score`: word and character error rates, as written and normalized; `loss` per token."""
        from sft_hf.tasks.scoring.word_errors import transcription_metrics

        groups = [reference.group or "none" for reference in examples.references]
        predictions = self._texts(outputs)
        metrics = transcription_metrics(
            predictions,
            [reference.text for reference in examples.references],
            normalize=self.normalizer(),
            groups=groups if self.grouped else None,
            confidence_samples=confidence_samples,
        )
        if confidence_samples:
            metrics |= self.confidence.metrics(*self.confidence_and_correctness(outputs, examples))
        return {"loss": float(outputs["loss"].double().sum() / outputs["items"].double().sum()), **metrics}

    def confidence_and_correctness(
        self, outputs: dict[str, Tensor], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Scorer.confidence_and_correctness`: a transcript is correct if it has no errors."""
        texts = [reference.text for reference in examples.references]
        pairs = zip(self._texts(outputs), texts, strict=True)
        exact = np.array([" ".join(said.split()) == " ".join(text.split()) for said, text in pairs])
        return np.asarray(self._confidences(outputs), dtype=np.float64), exact

    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """See `Scorer.calibration_items`: transcripts, with the classes wrong and right."""
        _, right = self.confidence_and_correctness(outputs, examples)
        return logits_of(outputs["confidence"]), torch.from_numpy(right).long()

    def _confidences(self, outputs: dict[str, Tensor]) -> list[float]:
        return self.confidence.of_probabilities(outputs["confidence"])

    def _texts(self, outputs: dict[str, Tensor]) -> list[str]:
        return [nfc(self.family.text(row)) for row in outputs["tokens"].tolist()]

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return `prediction`, the transcript, and `confidence`, the geometric mean of its tokens' probabilities."""
        pairs = zip(self._texts(outputs), self._confidences(outputs), strict=True)
        return [self.confidence.told({"prediction": text, "confidence": confidence}) for text, confidence in pairs]

    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """See `Scorer.saved_outputs`: the tokens of every hypothesis, and their log-probabilities."""
        return of_recogniser(outputs["hypotheses"], outputs["logprobs"], examples, split, self.confidence)

    def reference(self, value: Any) -> Any:
        """Return the transcript."""
        return value.text

    def decode_inputs(self, outputs: dict[str, Tensor], examples: Examples) -> list[dict[str, Any]]:
        """Return one prediction per recording, joined from its parts; with `task.timestamps`, it has `segments`."""
        parts: list[Part] = list(examples.references)
        tokens = outputs["tokens"].tolist()

        def words(index: int) -> list[Any]:
            return self.family.words(tokens[index], parts[index].end - parts[index].start)

        answers = joined(parts, self._texts(outputs), self._confidences(outputs), words, self.settings.timestamps)
        return [self.confidence.told(answer) for answer in answers]
