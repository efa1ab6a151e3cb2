"""Paired tests of the difference between two models on the same rows.

The intervals of two scores may overlap even if one model is correct on all rows on which the other is, and on many
more; a paired test detects this. Accuracy: McNemar's test, with the exact binomial distribution of the rows that only
one of the two gets right (Q. McNemar, Psychometrika 12, 1947). Other metrics: the percentile bootstrap of the
difference over paired rows (B. Efron and R. J. Tibshirani, 1993, chapter 16; M. Bisani and H. Ney, ICASSP 2004, for
word errors). Multiple comparisons: S. Holm, Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_hf.tasks.scoring.intervals import Floats, Ints, Statistic, f1_from_counts, resample_indices, resampled_macro_f1

MCNEMAR, BOOTSTRAP = "McNemar's exact test", "paired bootstrap"
SAMPLES = 10_000
MOST_DRAWS = 2 * 10**8  # rows drawn in total, which takes a few seconds

Values = tuple[Statistic, Statistic]
"""The metrics of the first and the second model, as functions of row indices [b, N]."""


@dataclass(frozen=True)
class Difference:
    """The difference between two models on the same rows.

    Attributes:
        first, second: the metric of each model.
        value: first - second.
        interval: 95 % confidence interval of `value`.
        p_value: two-sided, for the null hypothesis of no difference.
        test: `MCNEMAR` or `BOOTSTRAP`.
        rows: number of rows.
    """

    first: float
    second: float
    value: float
    interval: tuple[float, float]
    p_value: float
    test: str
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        told = {"value": self.value, "ci95": list(self.interval), "p_value": self.p_value}
        return {**told, "test": self.test, "num_examples": self.rows}


def paired_difference(
    metric: str, references: Sequence[Any], first: Sequence[Any], second: Sequence[Any], *, seed: int = 0
) -> Difference | None:
    """Compare the predictions of two models for the same rows.

    Args:
        metric: accuracy, micro_f1, macro_f1 (with one label per row), wer, mse, rmse or mae.
        references: [N] references as in predictions.jsonl: a label, a list of labels, a text, numbers.
        first, second: [N] predictions of each model, in the same form.
        seed: of the bootstrap.

    Returns:
        The difference; None for another metric, or without rows.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(references) == len(first) == len(second):
        raise ValueError(f"{len(references)} references, {len(first)} and {len(second)} answers")
    if not len(references) or metric not in _VALUES:
        return None
    one, other = _VALUES[metric](references, first, second)
    rows = len(references)
    everything = np.arange(rows)[None]
    a, b = float(one(everything)[0]), float(other(everything)[0])
    samples = max(1000, min(SAMPLES, MOST_DRAWS // rows))
    drawn = [one(indices) - other(indices) for indices in resample_indices(rows, samples=samples, seed=seed)]
    differences = np.concatenate(drawn)
    differences = differences[~np.isnan(differences)]
    low, high = np.quantile(differences, [0.025, 0.975]) if len(differences) else (a - b, a - b)
    p_value, test = _bootstrap_p(differences, rows), BOOTSTRAP
    if metric == "accuracy":
        p_value, test = mcnemar(*(np.array(_hits(references, answers)) for answers in (first, second))), MCNEMAR
    return Difference(a, b, a - b, (float(low), float(high)), p_value, test, rows)


def mcnemar(first: Any, second: Any) -> float:
    """Return the two-sided p value of McNemar's exact test.

    Args:
        first, second: bool [N], whether each model is correct on a row.

    Returns:
        2 P(X <= min(b, c)) for X ~ Binomial(b + c, 1/2), where only the first model is correct on b rows and only the
        second on c; at most 1.
    """
    from scipy.stats import binomtest  # as in `intervals.proportion_interval`

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's method, which controls the family-wise error rate.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _bootstrap_p(differences: Floats, rows: int) -> float:
    """Return twice the fraction of resamples on the other side of 0.

    It is at least 2 / (resamples + 1), and at least the smallest p value of a sign-flip test on the same number of
    pairs, 2^(1 - rows), since all resamples of one row are equal.
    """
    if not len(differences) or not differences.any():
        return 1.0
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, max(2.0 * (beyond + 1) / (len(differences) + 1), 2.0 ** (1 - rows)))


# --- metrics as functions of rows --------------------------------------------------------------------------------


def _hits(references: Sequence[Any], answers: Sequence[Any]) -> list[bool]:
    return [answer == truth for answer, truth in zip(answers, references, strict=True)]


def _mean(values: Any) -> Statistic:
    rows = np.asarray(values, dtype=np.float64)
    return lambda indices: rows[indices].mean(axis=1)


def _accuracy(references: Sequence[Any], *answers: Sequence[Any]) -> Values:
    one, other = (_mean(_hits(references, given)) for given in answers)
    return one, other


def _micro_f1(references: Sequence[Any], *answers: Sequence[Any]) -> Values:
    def of(given: Sequence[Any]) -> Statistic:
        pairs = [(set(truth), set(answer)) for truth, answer in zip(references, given, strict=True)]
        hits = np.array([len(truth & answer) for truth, answer in pairs])
        occurrences = np.array([len(truth) + len(answer) for truth, answer in pairs])
        return lambda indices: f1_from_counts(hits[indices].sum(axis=1), occurrences[indices].sum(axis=1))

    one, other = (of(given) for given in answers)
    return one, other


def _macro_f1(references: Sequence[Any], *answers: Sequence[Any]) -> Values:
    numbers: dict[str, int] = {}

    def codes(labels: Sequence[Any]) -> Ints:
        return np.array([numbers.setdefault(str(label), len(numbers)) for label in labels], dtype=np.int64)

    truth = codes(references)
    one, other = (resampled_macro_f1(codes(given), truth) for given in answers)
    return one, other


def _word_error_rate(references: Sequence[Any], *answers: Sequence[Any]) -> Values:
    from sft_hf.tasks.scoring.word_errors import word_edits  # needs the packages of speech

    def of(given: Sequence[Any]) -> Statistic:
        edits = word_edits(list(references), list(given))
        errors = np.array([len(row.pairs) for row in edits], dtype=np.float64)
        words = np.array([row.length for row in edits], dtype=np.float64)

        def rate(indices: Ints) -> Floats:
            spoken = words[indices].sum(axis=1)
            return np.divide(errors[indices].sum(axis=1), spoken, out=np.full(len(indices), np.nan), where=spoken > 0)

        return rate

    one, other = (of(given) for given in answers)
    return one, other


def _errors(of_rows: Callable[[Floats], Floats], root: bool = False) -> Callable[..., Values]:
    """Return metrics that are a mean over rows (and over the targets of a row), or the root of a mean."""

    def values(references: Sequence[Any], *answers: Sequence[Any]) -> Values:
        truth = np.asarray(references, dtype=np.float64).reshape(len(references), -1)

        def of(given: Sequence[Any]) -> Statistic:
            rows = of_rows(np.asarray(given, dtype=np.float64).reshape(truth.shape) - truth)
            if not root:
                return lambda indices: rows[indices].mean(axis=(1, 2))
            return lambda indices: np.sqrt(rows[indices].mean(axis=1)).mean(axis=1)

        one, other = (of(given) for given in answers)
        return one, other

    return values


_VALUES: dict[str, Callable[..., Values]] = {
    "accuracy": _accuracy,
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "wer": _word_error_rate,
    "mse": _errors(np.square),
    "mae": _errors(np.abs),
    "rmse": _errors(np.square, root=True),
}
