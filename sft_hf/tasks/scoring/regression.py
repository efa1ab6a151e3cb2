"""Regression metrics with bootstrap intervals.

Results consist of plain Python numbers and lists, ready for JSON. Undefined values, such as the correlation of constant
predictions, are None.

Each metric is computed from the number of draws of every row, so that one function gives both its value (every row
once) and its values on bootstrap resamples. In the shapes, N is the number of rows, T of targets, b of resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sft_hf.tasks.scoring.intervals import CONFIDENCE_SAMPLES, Floats, Ints, percentile_interval, resample_indices

__all__ = ["LOWER_IS_BETTER", "METRICS", "TOGETHER", "regression_metrics"]

METRICS = ("rmse", "mse", "mae", "r2", "pearson", "spearman")
"""Metrics of one target; for several targets, their mean."""

TOGETHER = "standardized_rmse"
"""Joint metric of several targets."""

LOWER_IS_BETTER = frozenset({"rmse", "mse", "mae", TOGETHER})

_ROUNDING = 1e-12  # relative rounding error of a variance that is 0


def regression_metrics(
    predictions: npt.ArrayLike,
    references: npt.ArrayLike,
    names: Sequence[str],
    scales: Sequence[float],
    *,
    confidence_samples: int = CONFIDENCE_SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of a regression model with one target or several.

    Args:
        predictions: [N, T], in the units of the targets.
        references: [N, T], finite.
        names: of the T targets.
        scales: the standard deviation of each target in train.
        confidence_samples: resamples of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.

    Returns:
        `num_examples`; for each metric, its mean over the targets for which it is defined, or None; `METRIC_ci95`,
        [low, high], by the bootstrap over rows; for several targets `per_target`, the same for each.

        rmse, mse, mae: root mean squared, mean squared and mean absolute error, in the target's unit or its square.
        r2: 1 - mse / variance of the references; at most 1, and 0 for always answering their mean.
        pearson, spearman: correlation of the values, and of their ranks (ties have their mean rank), in [-1, 1].
        standardized_rmse, for several targets: the root of the mean over targets of mse / scale^2, without unit.

    Raises:
        ValueError: no row, different shapes, or references that are not finite.
    """
    predicted, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if predicted.shape != truth.shape or truth.ndim != 2 or truth.shape[1] != len(names) or not len(truth):
        raise ValueError(
            f"predictions {predicted.shape} and references {truth.shape} must be [N, {len(names)}], N >= 1"
        )
    if not np.isfinite(truth).all():
        raise ValueError("references must be finite")
    if not np.isfinite(predicted).all():  # all metrics are then undefined
        predicted = np.full_like(predicted, np.nan)
    weights = np.asarray(scales, dtype=np.float64)
    point = _values(np.ones((1, len(truth))), predicted, truth, weights)
    resampled = [_values(drawn, predicted, truth, weights) for drawn in _draws(len(truth), confidence_samples, seed)]
    resamples = {key: np.concatenate([part[key] for part in resampled], axis=-1) for key in point if resampled}
    result: dict[str, Any] = {"num_examples": len(truth)}
    if len(names) > 1:
        result |= _measured(TOGETHER, point[TOGETHER], resamples.get(TOGETHER))
    for metric in METRICS:
        result |= _measured(metric, _mean(point[metric]), _mean(resamples[metric]) if resamples else None)
    if len(names) > 1:
        result["per_target"] = [
            _target(
                name,
                {key: point[key][index] for key in METRICS},
                {key: resamples[key][index] for key in resamples if key in METRICS},
            )
            for index, name in enumerate(names)
        ]
    return result


def _target(name: str, point: dict[str, Floats], resamples: dict[str, Floats]) -> dict[str, Any]:
    found: dict[str, Any] = {"target": name}
    for metric, value in point.items():
        found |= _measured(metric, value, resamples.get(metric))
    return found


def _measured(name: str, value: Floats, resamples: Floats | None) -> dict[str, Any]:
    """Return a metric [1] for JSON, with its interval if it is defined."""
    number = float(value[0])
    if not np.isfinite(number):
        return {name: None}
    if resamples is None or np.isnan(resamples).all():
        return {name: number}
    return {name: number, f"{name}_ci95": list(percentile_interval(resamples))}


def _mean(values: Floats) -> Floats:
    """Return the mean over the targets [T, b] for which a metric is defined, [b]; NaN if there are none."""
    defined = ~np.isnan(values)
    sums = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(defined.any(axis=0), sums / np.maximum(defined.sum(axis=0), 1), np.nan)


def _draws(rows: int, samples: int, seed: int) -> Iterator[Floats]:
    """Yield the number of draws of each row in each resample, float64 [b, N], in chunks."""
    for indices in resample_indices(rows, samples=samples, seed=seed) if samples else ():
        yield _drawn(indices, rows)


def _drawn(indices: Ints, rows: int) -> Floats:
    codes = indices + rows * np.arange(len(indices))[:, None]
    return np.bincount(codes.ravel(), minlength=len(indices) * rows).reshape(len(indices), rows).astype(np.float64)


def _values(counts: Floats, predicted: Floats, truth: Floats, scales: Floats) -> dict[str, Floats]:
    """Return every metric on the resamples with `counts` [b, N]: [T, b], and the joint metric [b]."""
    each = [_values_of(counts, *pair) for pair in zip(predicted.T, truth.T, strict=True)]
    found = {metric: np.stack([values[metric] for values in each]) for metric in METRICS}
    squared = (((predicted - truth) / scales) ** 2).mean(axis=1)
    return found | {TOGETHER: np.sqrt(counts @ squared / len(truth))}


def _values_of(counts: Floats, predicted: Floats, truth: Floats) -> dict[str, Floats]:
    """Return the metrics of one target, [b] each; NaN if undefined."""
    errors, rows = predicted - truth, len(truth)
    mse = counts @ errors**2 / rows
    spread = _variance(counts, truth)
    return {
        "rmse": np.sqrt(mse),
        "mse": mse,
        "mae": counts @ np.abs(errors) / rows,
        "r2": 1.0 - mse / spread,
        "pearson": _correlation(counts, predicted, truth),
        "spearman": _rank_correlation(counts, predicted, truth),
    }


def _variance(counts: Floats, values: Floats) -> Floats:
    """Return the variance of the drawn values, [b]; NaN if they are all equal."""
    centred = values - values.mean()  # avoids cancellation if values are far from 0
    squares, means = counts @ centred**2 / len(values), counts @ centred / len(values)
    variance = squares - means**2
    return np.where(variance > _ROUNDING * squares, variance, np.nan)


def _correlation(counts: Floats, first: Floats, second: Floats) -> Floats:
    """Return Pearson's r, [b]; NaN if one of the two is constant."""
    x, y, rows = first - first.mean(), second - second.mean(), len(first)
    covariance = counts @ (x * y) / rows - (counts @ x / rows) * (counts @ y / rows)
    return np.clip(covariance / np.sqrt(_variance(counts, first) * _variance(counts, second)), -1.0, 1.0)


def _rank_correlation(counts: Floats, first: Floats, second: Floats) -> Floats:
    """Return Spearman's rho (Pearson's r of the ranks in each line), [b]; NaN if one of the two is constant."""
    if not np.isfinite(first).all():
        return np.full(len(counts), np.nan)
    x, y = _centred_ranks(counts, first), _centred_ranks(counts, second)
    weighted = counts * x
    products = [np.einsum("bn,bn->b", *pair) for pair in ((weighted, x), (counts * y, y), (weighted, y))]
    both = products[0] * products[1]
    return np.clip(products[2] / np.sqrt(np.where(both > 0, both, np.nan)), -1.0, 1.0)


def _centred_ranks(counts: Floats, values: Floats) -> Floats:
    """Return the rank of each row's value in each line, minus the mean rank: [b, N]; ties have their mean rank.

    If all drawn rows have the same value, their ranks are exactly 0. Lines are not sorted one by one.
    """
    distinct, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct)))
    tied = counts[:, order] if len(distinct) == len(values) else np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.cumsum(tied, axis=1) - tied / 2 - len(values) / 2
    return ranks[:, codes]
