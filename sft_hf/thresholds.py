"""From scores to labels: what `predict` needs of the metrics; scikit-learn and `evaluate` take two seconds to import.

In the shapes, N is the number of examples and C the number of labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sft_hf.bootstrap import Floats, Ints


def apply_threshold(scores: npt.ArrayLike, threshold: float) -> Ints:
    """Which labels are predicted: those whose score is at least the threshold.

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
    return (checked_probabilities(scores) >= threshold).astype(np.int64)


def checked_matrix(values: Any, name: str) -> np.ndarray:
    """Return values as an array [N, C]. Raises ValueError for another shape, naming them by `name`."""
    matrix = np.asarray(values)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} must be [N, C] with N >= 1 and C >= 1, got shape {matrix.shape}")
    return matrix


def checked_scores(values: Any) -> Floats:
    """Return scores as float64 [N, C]. Raises ValueError for another shape, or one that is not finite."""
    matrix = checked_matrix(values, "scores").astype(np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError("scores must be finite, got NaN or infinity")
    return matrix


def checked_probabilities(values: Any) -> Floats:
    """Return scores as float64 [N, C]. Raises ValueError for another shape, or one outside [0, 1]."""
    matrix = checked_scores(values)
    if matrix.min() < 0.0 or matrix.max() > 1.0:
        raise ValueError(f"scores must be probabilities in [0, 1], got {matrix.min()} to {matrix.max()}")
    return matrix
