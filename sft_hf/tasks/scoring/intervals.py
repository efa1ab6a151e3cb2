"""Confidence intervals: by the percentile bootstrap, and of proportions by Wilson's score.

Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapter 13. The
rows of an evaluation set are drawn with replacement, as many as there are, many times over; the statistic is
computed on every such resample, and the interval runs between the 2.5 % and the 97.5 % quantile of what came
out. It says how far the figure would move on another sample of the same size from the same source. It says
nothing about another training seed, and it is too narrow where the rows are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Row indices [b, N], one resample a line, to the b values of a statistic.
Statistic = Callable[[Ints], Floats]

CONFIDENCE_SAMPLES = 1000
"""Resamples behind every interval that a run reports."""

# Indices held at once. Resamples are drawn and counted in chunks, so that memory stays at some tens of MB
# however many rows there are.
_CHUNK = 2**20


def resample_indices(num_rows: int, *, samples: int = 1000, seed: int = 0) -> Iterator[Ints]:
    """The resamples of a bootstrap, chunk by chunk.

    Args:
        num_rows: N >= 1, how many rows there are.
        samples: B >= 1, how many resamples to draw.
        seed: of the generator; the same N, B and seed give the same resamples.

    Yields:
        Integers [b, N] in [0, N): each line is one resample. The b of all chunks add up to B.

    Raises:
        ValueError: `num_rows` or `samples` below 1.
    """
    if num_rows < 1:
        raise ValueError(f"a bootstrap needs at least 1 row, got {num_rows}")
    if samples < 1:
        raise ValueError(f"a bootstrap needs at least 1 resample, got {samples}")
    generator = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK // num_rows)
    for start in range(0, samples, per_chunk):
        yield generator.integers(0, num_rows, size=(min(per_chunk, samples - start), num_rows))


def bootstrap_interval(
    statistic: Statistic,
    num_rows: int,
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic of the rows (Efron & Tibshirani 1993, chapter 13).

    Args:
        statistic: takes row indices [b, N], one resample a line, and returns the b values of the statistic.
            It may be called several times, with parts of the resamples. A NaN says that the statistic is not
            defined on that resample, which is then left out.
        num_rows: N >= 1. With N = 1 every resample is that row, and both ends are the statistic itself.
        samples: how many resamples to draw.
        seed: the same seed gives the same interval.
        confidence: the share the interval is to hold, in (0, 1).

    Returns:
        (low, high), in the unit of the statistic.

    Raises:
        ValueError: no row, no resample, a confidence outside (0, 1), a result of the wrong shape, or a
            statistic that is defined on no resample at all.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be inside (0, 1), got {confidence}")
    parts = []
    for indices in resample_indices(num_rows, samples=samples, seed=seed):
        part = np.asarray(statistic(indices), dtype=np.float64)
        if part.shape != (len(indices),):
            raise ValueError(f"statistic must return {len(indices)} values [b], got shape {part.shape}")
        parts.append(part)
    return percentile_interval(np.concatenate(parts), confidence)


def percentile_interval(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds a share of resampled values [B]; NaN, for undefined, is left out.

    Raises ValueError where all are NaN.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("the statistic is undefined (NaN) on every resample")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def proportion_interval(hits: npt.ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, such as accuracy over hits (1) and misses (0).

    Where every row is a hit, each bootstrap resample is too, and its interval would be [1, 1]: certainty that N rows
    cannot give. Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA
    22 (158), 1927; by scipy's `binomtest`.

    Args:
        hits: [N] of 0 and 1, or of booleans.
        confidence: the share the interval is to hold, in (0, 1).

    Returns:
        (low, high), inside [0, 1].

    Raises:
        ValueError: `hits` is empty, not one-dimensional, or holds anything but 0 and 1.
    """
    from scipy.stats import binomtest  # half a second, which no first step need wait for

    rows = _finite_rows(hits, "hits")
    if not np.isin(rows, (0.0, 1.0)).all():
        raise ValueError("hits must be 0 or 1")
    interval = binomtest(int(rows.sum()), len(rows)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_ratio_interval(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of sum(numerators) / sum(denominators), rows being drawn whole.

    For corpus-level rates: word error rate is the errors of all utterances over the words of all references,
    and its rows are utterances (M. Bisani and H. Ney, Bootstrap estimates for confidence intervals in ASR
    performance evaluation, ICASSP 2004).

    Args:
        numerators: [N] finite numbers, one a row.
        denominators: [N] finite numbers >= 0 with a sum above 0. A row may have 0 (an empty reference); a
            resample of nothing but such rows has no ratio and is left out.
        samples, seed, confidence: as for `bootstrap_interval`.

    Returns:
        (low, high), a ratio; not bounded by 1, as a word error rate is not.

    Raises:
        ValueError: the two differ in length, are empty, not one-dimensional or not finite; a denominator is
            negative; or all of them are 0.
    """
    above = _finite_rows(numerators, "numerators")
    below = _finite_rows(denominators, "denominators")
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators but {len(below)} denominators; one of each a row expected")
    if (below < 0).any() or not below.any():
        raise ValueError("denominators must be >= 0, and at least one of them above 0")

    def ratios(indices: Ints) -> Floats:
        sums = below[indices].sum(axis=1)
        ratio: Floats = np.full(len(indices), np.nan)
        np.divide(above[indices].sum(axis=1), sums, out=ratio, where=sums > 0)
        return ratio

    return bootstrap_interval(ratios, len(above), samples=samples, seed=seed, confidence=confidence)


def f1_from_counts(hits: npt.ArrayLike, occurrences: npt.ArrayLike) -> Floats:
    """F1 = 2 TP / (2 TP + FP + FN), elementwise; 0 where the label is neither predicted nor true.

    Args:
        hits: TP, of any shape.
        occurrences: of the same shape; how often the label is predicted plus how often it is true.

    Returns:
        F1 in [0, 1], of the same shape.
    """
    below = np.asarray(occurrences, dtype=np.float64)
    above = 2.0 * np.asarray(hits, dtype=np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def resampled_macro_f1(predictions: Ints, references: Ints) -> Statistic:
    """The statistic for `bootstrap_interval` of macro-F1, single-label.

    Args:
        predictions, references: [N] label indices.

    Returns:
        A function from row indices [b, N] to the macro-F1 of each of the b resamples, [b] in [0, 1]. As in
        `metrics.MacroF1`, the mean goes over the classes that occur in the resample. It counts the rows of
        all b at once; asked a thousand times, scikit-learn would take minutes.
    """
    # Classes that occur nowhere cannot occur in a resample: number only those that do.
    present, codes = np.unique(np.concatenate([references, predictions]), return_inverse=True)
    true, predicted = np.split(codes, 2)
    num_classes = len(present)
    hit = np.where(true == predicted, true, num_classes)  # a miss counts for a class that is then dropped

    def macro_f1(indices: Ints) -> Floats:
        occurrences = _class_counts(true[indices], num_classes)
        occurrences += _class_counts(predicted[indices], num_classes)
        hits = _class_counts(hit[indices], num_classes + 1)[:, :-1]
        return np.asarray(f1_from_counts(hits, occurrences).sum(axis=1) / (occurrences > 0).sum(axis=1))

    return macro_f1


def resampled_micro_f1(predictions: Ints, references: Ints) -> Statistic:
    """The statistic for `bootstrap_interval` of micro-F1, multi-label.

    Args:
        predictions, references: [N, C] of 0/1.

    Returns:
        A function from row indices [b, N] to the micro-F1 of each of the b resamples, [b] in [0, 1]; 0 where
        the resample holds no label at all.
    """
    hits = (predictions & references).sum(axis=1)
    occurrences = (predictions + references).sum(axis=1)
    return lambda indices: f1_from_counts(hits[indices].sum(axis=1), occurrences[indices].sum(axis=1))


def resampled_label_macro_f1(predictions: Ints, references: Ints) -> Statistic:
    """The statistic for `bootstrap_interval` of macro-F1 over all labels, multi-label.

    Args:
        predictions, references: [N, C] of 0/1.

    Returns:
        A function from row indices [b, N] to the macro-F1 of each of the b resamples, [b] in [0, 1]. A label
        that the resample does not hold counts as 0.
    """
    # The counts of a resample are one matrix product: how often each row was drawn [b, N] times the row's
    # own counts [N, C]. Single precision holds whole numbers up to 2**24 exactly.
    precision: type[np.floating[Any]] = np.float32 if 2 * len(references) < 2**24 else np.float64
    hits = (predictions & references).astype(precision)
    occurrences = (predictions + references).astype(precision)

    def macro_f1(indices: Ints) -> Floats:
        drawn = _class_counts(indices, len(references)).astype(precision)
        f1 = f1_from_counts(np.matmul(drawn, hits), np.matmul(drawn, occurrences))
        return np.asarray(f1.mean(axis=1))

    return macro_f1


def _class_counts(labels: Ints, num_classes: int) -> Ints:
    """How often each class occurs in each line of [b, N]: [b, num_classes]."""
    lines = len(labels)
    codes = labels + num_classes * np.arange(lines)[:, None]
    return np.bincount(codes.ravel(), minlength=lines * num_classes).reshape(lines, num_classes)


def _finite_rows(values: npt.ArrayLike, name: str) -> Floats:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"{name} must be [N] with N >= 1, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} must be finite, row {int(np.argmin(np.isfinite(rows)))} is not")
    return rows
