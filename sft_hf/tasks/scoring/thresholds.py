"""From scores to labels: what `predict` needs of the metrics; scikit-learn and `evaluate` take two seconds to import.

In the shapes, N is the number of examples and C the number of labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sft_hf.tasks.scoring.inputs import probability_matrix
from sft_hf.tasks.scoring.intervals import Ints


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
    return (probability_matrix(scores) >= threshold).astype(np.int64)
