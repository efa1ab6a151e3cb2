"""Metrics and predictions of classifiers: one label per row by softmax, or any number of labels by sigmoids.

Multi-label predictions use one threshold chosen on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_hf.core.run.outputs import SplitOutputs
from sft_hf.data.examples import Examples
from sft_hf.data.labels.label_map import LabelMap
from sft_hf.tasks.base import Scorer
from sft_hf.tasks.saved_outputs import of_classifier
from sft_hf.tasks.scoring.confidence import CLOSEST
from sft_hf.tasks.scoring.inputs import apply_threshold

CLOSE = 1 / 8  # of the largest logit: bf16 changed a difference by up to 1/30 of it, for MiniLM-L6 on Reuters R8


class ClassificationScorer(Scorer):
    """Metrics and predictions of a classifier, from its `logits` [rows, labels].

    Args:
        label_map: the labels, in the order of the logits.
        multi_label: whether a row has any number of labels.
        threshold: probability threshold of multi-label predictions.
    """

    def __init__(self, label_map: LabelMap, multi_label: bool, threshold: float = 0.5) -> None:
        super().__init__()
        self.label_map, self.multi_label, self.threshold = label_map, multi_label, threshold
        self.primary_metric = "micro_f1" if multi_label else "accuracy"

    def counts(self, references: Sequence[Any]) -> np.ndarray:
        """Return the number of rows of each label."""
        flat = [label for labels in references for label in labels] if self.multi_label else list(references)
        return np.bincount(np.asarray(flat, dtype=np.int64), minlength=len(self.label_map.names))

    def indicator(self, labels: Any) -> np.ndarray:
        """Return lists of labels as float32 [rows, labels] of 0 and 1."""
        matrix = np.zeros((len(labels), len(self.label_map.names)), dtype=np.float32)
        for row, indices in enumerate(labels):
            matrix[row, list(indices)] = 1.0
        return matrix

    def close_calls(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """See `Scorer.close_calls`: rows with a decision margin below `CLOSE` times the largest logit.

        The margin is between the two best labels, or a label and the decision threshold, or the confidence and the
        abstention threshold.
        """
        logits = outputs["logits"].double()
        if self.multi_label:
            margins = logits - self._border(self.threshold)
        else:
            best = logits.topk(min(2, logits.shape[1]), dim=1).values
            margins = best[:, :1] - best[:, 1:]
        abstains_below = self.confidence.threshold
        if abstains_below is not None and abstains_below < 1:
            confidences = torch.from_numpy(self.probabilities(outputs)).amax(dim=1, keepdim=True)
            margins = torch.cat([margins, self._border(confidences) - self._border(abstains_below)], dim=1)
        return (margins.abs() < CLOSE * logits.abs().amax(dim=1, keepdim=True)).any(dim=1)

    def _border(self, probability: Tensor | float) -> Tensor:
        """Return the logit of a probability, before the temperature."""
        return torch.logit(torch.as_tensor(probability, dtype=torch.float64), CLOSEST) * self.confidence.temperature

    def probabilities(self, outputs: dict[str, Tensor]) -> np.ndarray:
        """Return softmax (multi-label: sigmoid) of the logits divided by T, float32 [rows, labels]."""
        logits = self.confidence.scaled(outputs["logits"])
        scores = torch.sigmoid(logits) if self.multi_label else torch.softmax(logits, dim=-1)
        return scores.numpy()

    def class_probabilities(self, outputs: dict[str, Tensor]) -> list[dict[str, float]] | None:
        """See `Scorer.class_probabilities`; multi-label, the probabilities of a row need not sum to 1."""
        names = self.label_map.names
        return [dict(zip(names, row, strict=True)) for row in self.probabilities(outputs).tolist()]

    def metric_names(self) -> list[str]:
        """See `Scorer.metric_names`."""
        own = ["micro_f1", "macro_f1", "map", "subset_accuracy"] if self.multi_label else ["accuracy", "macro_f1"]
        return [*own, "loss"]

    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """See `Scorer.tune`: multi-label, the threshold with the best micro-F1."""
        if self.multi_label:
            from sft_hf.tasks.scoring.classification import choose_threshold  # as in `score`

            self.threshold = choose_threshold(self.probabilities(outputs), self.indicator(examples.references))

    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """See `Scorer.score`: accuracy and macro-F1, or micro-F1, macro-F1 and mAP; `loss`."""
        # The import takes two seconds, and is not needed by `predict` or by the first training step.
        from sft_hf.tasks.scoring.classification import multi_label_metrics, single_label_metrics

        scores = self.probabilities(outputs)
        names = list(self.label_map.names)
        if self.multi_label:
            metrics = multi_label_metrics(
                scores,
                self.indicator(examples.references),
                self.threshold,
                names,
                confidence_samples=confidence_samples,
            )
        else:
            references = np.asarray(examples.references, dtype=np.int64)
            metrics = single_label_metrics(
                scores.argmax(axis=1), references, names, confidence_samples=confidence_samples
            )
        if confidence_samples:
            metrics |= self.confidence.metrics(*self._of_best(scores, examples.references))
        return {"loss": float(outputs["loss"].double().mean()), **metrics}

    def confidence_and_correctness(
        self, outputs: dict[str, Tensor], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the confidence of the most probable label, and whether it is a label of the row."""
        return self._of_best(self.probabilities(outputs), examples.references)

    def _of_best(self, scores: np.ndarray, references: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        best = scores.argmax(axis=1)
        confidences = np.take_along_axis(scores, best[:, None], axis=1)[:, 0].astype(np.float64)
        if self.multi_label:
            right = np.array([label in labels for label, labels in zip(best.tolist(), references, strict=True)])
        else:
            right = best == np.asarray(references)
        return confidences, right

    def set_temperature(self, temperature: float) -> None:
        """See `Scorer.set_temperature`; multi-label: also scales the decision threshold."""
        super().set_temperature(temperature)
        if self.multi_label:
            (scaled,) = self.confidence.of_probabilities(torch.tensor([self.threshold], dtype=torch.float64))
            self.threshold = min(max(scaled, CLOSEST), 1 - CLOSEST)

    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """See `Scorer.calibration_items`: rows; multi-label: each label of each row, with the classes no and yes."""
        logits = outputs["logits"]
        if not self.multi_label:
            return logits, torch.tensor(list(examples.references), dtype=torch.int64)
        yes = logits.flatten()
        right = torch.from_numpy(self.indicator(examples.references)).flatten().long()
        return torch.stack([torch.zeros_like(yes), yes], dim=1), right

    def constant_answer(self, train: Sequence[Any], references: Sequence[Any], confidence_samples: int) -> Any:
        """See `Scorer.constant_answer`: the most frequent label of the training rows."""
        from sft_hf.tasks.scoring.classification import multi_label_metrics, single_label_metrics  # as in `score`

        label = int(self.counts(train).argmax())
        names, rows = list(self.label_map.names), len(references)
        options = {"confidence_samples": confidence_samples}
        if self.multi_label:
            scores = np.zeros((rows, len(names)), dtype=np.float32)
            scores[:, label] = 1.0
            metrics = multi_label_metrics(scores, self.indicator(references), 0.5, names, **options)
        else:
            answers, truth = np.full(rows, label, dtype=np.int64), np.asarray(references, dtype=np.int64)
            metrics = single_label_metrics(answers, truth, names, **options)
        return f"always answering {names[label]!r}, the most frequent label of train", metrics

    def label_counts(self, references: Sequence[Any]) -> dict[str, int] | None:
        """See `Scorer.label_counts`."""
        return dict(zip(self.label_map.names, self.counts(references).tolist(), strict=True))

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return `prediction`, a label (or a list of the labels above the threshold), and `confidence`.

        The confidence is the highest probability. Multi-label rows also have the `scores` of the predicted labels.
        """
        names = self.label_map.names
        rows = []
        for scores in self.probabilities(outputs):
            best = int(scores.argmax())
            if not self.multi_label:
                rows.append(self.confidence.told({"prediction": names[best], "confidence": float(scores[best])}))
                continue
            above = np.flatnonzero(apply_threshold(scores[None], self.threshold)[0])
            chosen = {names[index]: float(scores[index]) for index in above}
            row = {"prediction": list(chosen), "confidence": float(scores[best]), "scores": chosen}
            rows.append(self.confidence.told(row))
        return rows

    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """See `Scorer.saved_outputs`: the logits, before the temperature."""
        threshold = self.threshold if self.multi_label else None
        names = self.label_map.names
        return of_classifier(outputs["logits"], examples, split, names, self.confidence, threshold)

    def reference(self, value: Any) -> Any:
        """Return the label's name, or the list of names."""
        names = self.label_map.names
        return [names[index] for index in value] if self.multi_label else names[value]
