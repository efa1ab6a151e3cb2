"""Validation of the inputs of `sft_hf.tasks.scoring.classification`, as arrays: N examples, C labels.

All functions raise ValueError for invalid inputs. Neither scikit-learn nor `evaluate` is imported, as `predict`
needs thresholds but no metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sft_hf.tasks.scoring.intervals import Floats, Ints


def checked_single(predictions: Any, references: Any) -> tuple[Ints, Ints]:
    """Return labels of single-label rows, int64 [N] each."""
    return same_shape(label_indices(predictions, "predictions"), label_indices(references, "references"))


def checked_scores(scores: Any, references: Any) -> tuple[Floats, Ints]:
    """Return scores, float64 [N, C], and labels of 0 and 1, int64 [N, C]."""
    return same_shape(score_matrix(scores), binary_matrix(references, "references"))


def same_shape(predictions: Any, references: Any) -> tuple[Any, Any]:
    """Return both, if their shapes are equal."""
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions and references must be of the same shape: {predictions.shape}, {references.shape}"
        )
    return predictions, references


def label_indices(values: Any, name: str) -> Ints:
    """Return label indices, int64 [N]."""
    labels = np.asarray(values)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"{name} must be [N] label indices with N >= 1, got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        # Scores cast to integers would all become label 0.
        raise ValueError(f"{name} must be integer label indices, got {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"{name} must be label indices >= 0, got {labels.min()}")
    return labels.astype(np.int64)


def check_range(predictions: Ints, references: Ints, num_labels: int) -> None:
    """Check that all indices are below `num_labels`."""
    for name, labels in (("predictions", predictions), ("references", references)):
        if labels.max() >= num_labels:
            raise ValueError(f"{name} must be label indices in [0, {num_labels}), got {labels.max()}")


def _matrix(values: Any, name: str) -> np.ndarray:
    matrix = np.asarray(values)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} must be [N, C] with N >= 1 and C >= 1, got shape {matrix.shape}")
    return matrix


def binary_matrix(values: Any, name: str) -> Ints:
    """Return 0 and 1 as int64 [N, C]."""
    matrix = _matrix(values, name)
    if not ((matrix == 0) | (matrix == 1)).all():
        raise ValueError(f"{name} must be 0 or 1 everywhere")
    return matrix.astype(np.int64)


def score_matrix(values: Any) -> Floats:
    """Return finite numbers as float64 [N, C]."""
    matrix = _matrix(values, "scores").astype(np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError("scores must be finite, got NaN or infinity")
    return matrix


def probability_matrix(values: Any) -> Floats:
    """Return numbers from 0 to 1 as float64 [N, C]."""
    matrix = score_matrix(values)
    if matrix.min() < 0.0 or matrix.max() > 1.0:
        raise ValueError(f"scores must be probabilities in [0, 1], got {matrix.min()} to {matrix.max()}")
    return matrix


def apply_threshold(scores: npt.ArrayLike, threshold: float) -> Ints:
    """Return the predicted labels: those with a score of at least the threshold.

    Args:
        scores: [N, C] probabilities in [0, 1].
        threshold: in (0, 1).

    Returns:
        [N, C] of 0/1.

    Raises:
        ValueError: a score or the threshold is outside its range, or `scores` is not [N, C].
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must be inside (0, 1), got {threshold}")
    return (probability_matrix(scores) >= threshold).astype(np.int64)
