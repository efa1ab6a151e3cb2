"""How far a model's confidence can be taken at its word.

Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equation 3
(expected calibration error) and figure 1 (reliability diagram).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # as in the paper's experiments


def calibration_metrics(confidences: Sequence[float], correct: Sequence[bool], *, bins: int = BINS) -> dict[str, Any]:
    """Return `ece` and `calibration`, the reliability diagram behind it.

    ECE = sum over bins of (rows in the bin / N) |accuracy of the bin - mean confidence of the bin|; the bins are of
    equal width over [0, 1], each open below and closed above, and 0 belongs to the first.

    Args:
        confidences: [N] in [0, 1], of the answers given.
        correct: [N], whether each answer was right.
        bins: how many.

    Returns:
        `ece`, in [0, 1], and `calibration`: for each bin that holds rows, "low", "high", "count", "confidence" (their
        mean) and "accuracy" (the share that was right).

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
    """Return what comes of answering only with a confidence of at least `threshold`.

    Source: Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, 2017, section 2.

    Returns:
        `coverage`, the share of rows that are answered, and `selective_error`, the share of these that is wrong; None
        where none is answered.
    """
    accepted = np.asarray(confidences) >= threshold
    wrong = accepted & ~np.asarray(correct, dtype=bool)
    error = float(wrong.sum() / accepted.sum()) if accepted.any() else None
    return {"coverage": float(accepted.mean()), "selective_error": error}
