"""Confidence of predictions: temperature scaling, abstention and calibration metrics.

Temperature and threshold are chosen on validation after training (techniques temperature_scaling and abstention), are
saved in the model's config, and have no effect by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_hf.core.errors import CheckpointError

# Not `temperature`, which Transformers treats as a setting of text generation.
TEMPERATURE, THRESHOLD = "confidence_temperature", "abstention_threshold"
NEVER = 2.0
"""A threshold that no confidence reaches."""
BINS = 15  # of a reliability diagram, as in the experiments of Guo et al.
CLOSEST = 1e-7  # distance to 0 and 1 of a probability before taking its logit


@dataclass
class Confidence:
    """Temperature T of the confidence, and the confidence below which a model abstains; None: never."""

    temperature: float = 1.0
    threshold: float | None = None

    @classmethod
    def of(cls, config: Any) -> Confidence:
        """Return the values in a saved config. Raises CheckpointError for invalid values."""
        temperature, threshold = getattr(config, TEMPERATURE, 1.0), getattr(config, THRESHOLD, None)
        if not _is_number(temperature) or temperature == 0:
            raise CheckpointError(f"config.json: {TEMPERATURE} is {temperature!r}; it must be a number above 0")
        if threshold is not None and not _is_number(threshold):
            raise CheckpointError(f"config.json: {THRESHOLD} is {threshold!r}; it must be a number, or null")
        return cls(float(temperature), None if threshold is None else float(threshold))

    def write(self, config: Any) -> None:
        """Write values other than the defaults to a config, and remove those of an earlier training."""
        values = {TEMPERATURE: None if self.temperature == 1 else self.temperature, THRESHOLD: self.threshold}
        for name, value in values.items():
            if value is not None:
                setattr(config, name, value)
            elif hasattr(config, name):
                delattr(config, name)

    def scaled(self, logits: Tensor) -> Tensor:
        """Return z / T (C. Guo et al., On Calibration of Modern Neural Networks, 2017, equation 9)."""
        return logits if self.temperature == 1 else logits / self.temperature

    def of_probabilities(self, probabilities: Tensor) -> list[float]:
        """Return sigmoid(logit(p) / T) of [rows], for predictions that are not a choice among classes."""
        if self.temperature == 1:
            return [float(value) for value in probabilities.tolist()]
        scaled = torch.sigmoid(self.scaled(logits_of(probabilities)[:, 1]))
        return [float(value) for value in scaled.tolist()]

    def told(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a prediction; with a threshold, add `abstain` (whether its confidence is below the threshold)."""
        return row if self.threshold is None else {**row, "abstain": row["confidence"] < self.threshold}

    def metrics(self, confidences: np.ndarray, right: np.ndarray) -> dict[str, Any]:
        """Return calibration metrics, and if there is a threshold, selective metrics."""
        found = calibration_metrics(confidences.tolist(), right.tolist())
        return found if self.threshold is None else found | selective_metrics(confidences, right, self.threshold)


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value) and value >= 0


def logits_of(probabilities: Tensor) -> Tensor:
    """Return float64 [rows, 2], 0 and log(p / (1 - p)): logits of the classes wrong and right."""
    p = probabilities.double().clamp(CLOSEST, 1 - CLOSEST)
    return torch.stack([torch.zeros_like(p), torch.log(p) - torch.log1p(-p)], dim=1)


def calibration_metrics(confidences: Sequence[float], correct: Sequence[bool], *, bins: int = BINS) -> dict[str, Any]:
    """Return the expected calibration error `ece` and the reliability diagram `calibration`.

    Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern Neural Networks, ICML 2017,
    equation 3 (expected calibration error) and figure 1 (reliability diagram).

    ECE = sum over bins of (rows in the bin / N) |accuracy of the bin - mean confidence of the bin|; the bins are of
    equal width over [0, 1], each open below and closed above, and 0 belongs to the first.

    Args:
        confidences: [N] in [0, 1], of the predictions.
        correct: [N], whether each prediction is correct.
        bins: number of bins.

    Returns:
        `ece`, in [0, 1], and `calibration`: for each non-empty bin, "low", "high", "count", "confidence" (mean) and
        "accuracy" (fraction correct).

    Raises:
        ValueError: an empty input, a length mismatch, or a confidence outside [0, 1].
    """
    values, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if values.ndim != 1 or not len(values) or values.shape != right.shape:
        raise ValueError(f"confidences and correct must be [N] with N >= 1, got {values.shape} and {right.shape}")
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():  # a float32 probability may exceed 1 in the last bit
        raise ValueError("confidences must be in [0, 1]")
    index = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = np.flatnonzero(counts)
    confidence = np.bincount(index, values, bins)[filled] / counts[filled]
    accuracy = np.bincount(index, right, bins)[filled] / counts[filled]
    table = [
        {
            "low": float(number / bins),
            "high": float((number + 1) / bins),
            "count": int(counts[number]),
            "confidence": float(mean),
            "accuracy": float(share),
        }
        for number, mean, share in zip(filled, confidence, accuracy, strict=True)
    ]
    error = float((counts[filled] * np.abs(accuracy - confidence)).sum() / len(values))
    return {"ece": error, "calibration": table}


def selective_metrics(confidences: np.ndarray, correct: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return metrics of answering only with a confidence of at least `threshold`.

    Source: Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, 2017, section 2.

    Returns:
        `coverage`, the fraction of rows that are answered, and `selective_error`, the fraction of these that are wrong
        (None if no row is answered).
    """
    accepted = np.asarray(confidences) >= threshold
    wrong = accepted & ~np.asarray(correct, dtype=bool)
    error = float(wrong.sum() / accepted.sum()) if accepted.any() else None
    return {"coverage": float(accepted.mean()), "selective_error": error}
