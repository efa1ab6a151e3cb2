"""Balanced sampling: rows with rare labels are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_hf.data.examples import Examples
from sft_hf.techniques.base import Technique
from sft_hf.techniques.labels.settings import BalancedSamplingSettings


def rarest_labels(references: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's rarest label, int64 [rows], and the number of rows of each label.

    Rows without labels get an additional label, the last.

    Args:
        references: a label, or a list of labels, for each row.

    Source: A. Gupta et al., LVIS, 2019, repeat factor sampling, where the rarest label of a row determines its
    repetitions.
    """
    rows = [reference if isinstance(reference, list) else [reference] for reference in references]
    none = 1 + max((label for row in rows for label in row), default=-1)
    rows = [row or [none] for row in rows]
    counts = np.bincount([label for row in rows for label in row])
    return np.asarray([min(row, key=lambda label: (counts[label], label)) for row in rows]), counts


def sampled(rarest: np.ndarray, counts: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return a sample of row indices with repetitions, int64 [rows], ascending.

    A row is drawn with probability proportional to n^-s, where n is the number of rows of its label, so that a label
    with n rows has a share proportional to n^(1 - s). Systematic sampling reduces the variance: each row occurs its
    expected number of times, rounded up or down, and so does each label if rows have a single label.

    Args:
        rarest, counts: see `rarest_labels`.
        strength: s; at 0 every row occurs once, at 1 all labels are equally frequent.

    Source: B. Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, 2020, equation 1, with
    q = 1 - s.
    """
    weights = counts[rarest].astype(np.float64) ** -strength
    times = weights / weights.mean()  # expected number of occurrences
    order = generator.permutation(len(rarest))
    order = order[np.argsort(rarest[order], kind="stable")]
    points = generator.random() + np.arange(len(rarest))
    places = np.searchsorted(np.cumsum(times[order]), points, side="right")
    return np.sort(order[np.minimum(places, len(rarest) - 1)])


class BalancedSampling(Technique[BalancedSamplingSettings]):
    """Sample the rows of an epoch so that rare labels occur as often as frequent ones.

    For imbalanced labels that are equally important. An epoch has as many rows as before: rare ones repeat, and a
    different part of the frequent ones is used in each epoch. Repeated rows are memorized sooner; a smaller strength
    helps. Augmentation differs between epochs, not between repetitions within one. A multi-label row is as rare as its
    rarest label. No extra time per step.
    """

    paper = (
        "B. Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, 2020, equation 1; "
        "multi-label A. Gupta et al., LVIS, 2019 (repeat factor sampling)"
    )
    allows_frozen_features = True

    def sample_rows(self, examples: Examples, generator: np.random.Generator) -> np.ndarray:
        """See `sampled`."""
        return sampled(*rarest_labels(examples.references), self.settings.strength, generator)
