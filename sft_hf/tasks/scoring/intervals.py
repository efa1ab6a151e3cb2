"""Confidence intervals: percentile bootstrap, and Wilson score intervals of proportions.

Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapter 13. The rows of an
evaluation set are resampled with replacement many times; the statistic is computed on every resample, and the interval
is the range from the 2.5 % to the 97.5 % quantile of the results. It estimates the variation over other samples of the
same size from the same source. It does not include the variation over training seeds, and is too narrow if the rows are
not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Maps row indices [b, N], one resample per line, to the b values of a statistic.
Statistic = Callable[[Ints], Floats]

CONFIDENCE_SAMPLES = 1000
"""Number of bootstrap resamples for the intervals of a run."""

# Indices in memory at once. Resamples are processed in chunks, so that memory stays at tens of MB,
# independent of the number of rows.
_CHUNK = 2**20


def resample_indices(num_rows: int, *, samples: int = 1000, seed: int = 0) -> Iterator[Ints]:
    """Yield bootstrap resamples in chunks.

    Args:
        num_rows: N >= 1, the number of rows.
        samples: B >= 1, the number of resamples.
        seed: of the generator; the same N, B and seed give the same resamples.

    Yields:
        Integers [b, N] in [0, N), one resample per line. The b of all chunks add up to B.

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
    """Return the percentile bootstrap interval of a statistic of the rows (Efron & Tibshirani 1993, chapter 13).

    Args:
        statistic: maps row indices [b, N], one resample per line, to the b values of the statistic. It may be called
            several times, with parts of the resamples. NaN means that the statistic is undefined on a resample, which
            is then left out.
        num_rows: N >= 1. With N = 1, every resample is that row, and both ends are equal to the statistic.
        samples: number of resamples.
        seed: of the resamples.
        confidence: confidence level of the interval, in (0, 1).

    Returns:
        (low, high), in the unit of the statistic.

    Raises:
        ValueError: no row, no resample, a confidence outside (0, 1), a result of the wrong shape, or a statistic that
            is undefined on all resamples.
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
    """Return the central interval of resampled values [B] at a confidence level; NaN (undefined) is left out.

    Raises ValueError if all are NaN.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("the statistic is undefined (NaN) on every resample")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def proportion_interval(hits: npt.ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, such as accuracy over hits (1) and misses (0).

    If all rows are hits, a bootstrap interval would be [1, 1], which is too narrow for N rows. Source: E. B. Wilson,
    Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (158), 1927; computed by scipy's
    `binomtest`.

    Args:
        hits: [N] of 0 and 1, or of booleans.
        confidence: confidence level of the interval, in (0, 1).

    Returns:
        (low, high), inside [0, 1].

    Raises:
        ValueError: `hits` is empty, not one-dimensional, or has values other than 0 and 1.
    """
    from scipy.stats import binomtest  # takes half a second, and is not needed by the first training step

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
    """Return the bootstrap interval of sum(numerators) / sum(denominators) over resampled rows.

    For corpus-level rates, such as the word error rate: the errors of all utterances over the words of all references,
    with utterances as rows (M. Bisani and H. Ney, Bootstrap estimates for confidence intervals in ASR performance
    evaluation, ICASSP 2004).

    Args:
        numerators: [N] finite numbers, one per row.
        denominators: [N] finite numbers >= 0 with a sum above 0. A row may have 0 (an empty reference); a resample with
            only such rows is left out.
        samples, seed, confidence: see `bootstrap_interval`.

    Returns:
        (low, high) of the ratio, which may exceed 1, like a word error rate.

    Raises:
        ValueError: the two differ in length, are empty, not one-dimensional or not finite; a denominator is negative;
            or all denominators are 0.
    """
    above = _finite_rows(numerators, "numerators")
    below = _finite_rows(denominators, "denominators")
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators but {len(below)} denominators; expected one of each per row")
    if (below < 0).any() or not below.any():
        raise ValueError("denominators must be >= 0, and at least one of them above 0")

    def ratios(indices: Ints) -> Floats:
        sums = below[indices].sum(axis=1)
        ratio: Floats = np.full(len(indices), np.nan)
        np.divide(above[indices].sum(axis=1), sums, out=ratio, where=sums > 0)
        return ratio

    return bootstrap_interval(ratios, len(above), samples=samples, seed=seed, confidence=confidence)


def f1_from_counts(hits: npt.ArrayLike, occurrences: npt.ArrayLike) -> Floats:
    """Return F1 = 2 TP / (2 TP + FP + FN), elementwise; 0 if the label is neither predicted nor true.

    Args:
        hits: TP, of any shape.
        occurrences: of the same shape; the number of predictions of the label plus the number of its references.

    Returns:
        F1 in [0, 1], of the same shape.
    """
    below = np.asarray(occurrences, dtype=np.float64)
    above = 2.0 * np.asarray(hits, dtype=np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def resampled_macro_f1(predictions: Ints, references: Ints) -> Statistic:
    """Return the statistic for `bootstrap_interval` of macro-F1, single-label.

    Args:
        predictions, references: [N] label indices.

    Returns:
        A function from row indices [b, N] to the macro-F1 of each of the b resamples, [b] in [0, 1]. As in `MacroF1`,
        the mean is over the classes that occur in the resample. It counts the rows of all b at once; scikit-learn would
        take minutes for a thousand resamples.
    """
    # Only classes that occur can be in a resample.
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
    """Return the statistic for `bootstrap_interval` of micro-F1, multi-label.

    Args:
        predictions, references: [N, C] of 0/1.

    Returns:
        A function from row indices [b, N] to the micro-F1 of each of the b resamples, [b] in [0, 1]; 0 for a resample
        without labels.
    """
    hits = (predictions & references).sum(axis=1)
    occurrences = (predictions + references).sum(axis=1)
    return lambda indices: f1_from_counts(hits[indices].sum(axis=1), occurrences[indices].sum(axis=1))


def resampled_label_macro_f1(predictions: Ints, references: Ints) -> Statistic:
    """Return the statistic for `bootstrap_interval` of macro-F1 over all labels, multi-label.

    Args:
        predictions, references: [N, C] of 0/1.

    Returns:
        A function from row indices [b, N] to the macro-F1 of each of the b resamples, [b] in [0, 1]. A label that is
        not in the resample counts as 0.
    """
    # The counts of a resample are a matrix product: the number of draws of each row [b, N] times the row's counts
    # [N, C]. Single precision represents integers up to 2**24 exactly.
    precision: type[np.floating[Any]] = np.float32 if 2 * len(references) < 2**24 else np.float64
    hits = (predictions & references).astype(precision)
    occurrences = (predictions + references).astype(precision)

    def macro_f1(indices: Ints) -> Floats:
        drawn = _class_counts(indices, len(references)).astype(precision)
        f1 = f1_from_counts(np.matmul(drawn, hits), np.matmul(drawn, occurrences))
        return np.asarray(f1.mean(axis=1))

    return macro_f1


def _class_counts(labels: Ints, num_classes: int) -> Ints:
    """Count each class in each line of [b, N]; return [b, num_classes]."""
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
