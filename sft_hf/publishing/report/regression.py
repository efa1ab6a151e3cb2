"""Predictions compared with references, as charts and tables of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import count, decimal, interval, metric_name, metric_range, metric_value, rows
from sft_hf.publishing.regression import is_regression, pairs, target_names
from sft_hf.publishing.report.charts import bar_panel, scatter_panel

MOST_POINTS = 1000  # points of a scatter plot
BARS = 20
SHOWN = ("rmse", "mae", "r2", "pearson", "spearman")


def targets(record: RunRecord) -> dict[str, Any] | None:
    """Return a table of the metrics of each target, and their charts; None for other tasks."""
    if not is_regression(record):
        return None
    charts = [_charts(name, points, record.split) for name, points in pairs(record).items() if points]
    several = record.scores.get("per_target") or []
    return {
        "columns": [metric_name(metric) for metric in SHOWN],
        "rows": [
            (entry["target"], [_cell(entry, metric, metric == SHOWN[0]) for metric in SHOWN]) for entry in several
        ],
        "charts": charts,
        "spread": spread(record),
    }


def _cell(scores: dict[str, Any], metric: str, with_interval: bool) -> str:
    pair = interval(scores, metric) if with_interval else None
    return metric_value(metric, scores.get(metric)) + (f" ({metric_range(metric, pair)})" if pair else "")


def _charts(name: str, points: list[tuple[float, float]], split: str) -> dict[str, Any]:
    drawn = points[:: -(-len(points) // MOST_POINTS)]
    residuals = [prediction - reference for reference, prediction in points]
    mean = math.fsum(residuals) / len(residuals)
    references, predictions = zip(*points, strict=True)
    told = f"{rows(len(points))}: references from {_span(references)}, predictions from {_span(predictions)}"
    edges, counts = _histogram(residuals)
    return {
        "name": name,
        "scatter": scatter_panel(f"Predictions of {name} against references on {split}", f"{told}.", drawn),
        "note": f"{count(len(drawn))} of {rows(len(points))} are drawn." if len(drawn) < len(points) else "",
        "residuals": bar_panel(
            f"Errors of {name} on {split}",
            f"Rows by prediction minus reference, from {_span(residuals)}, on average {decimal(mean)}.",
            edges,
            counts,
            x_format=decimal,
        ),
        "sentence": f"On average, predictions are {decimal(abs(mean))} too {'high' if mean > 0 else 'low'}.",
    }


def _span(values: Sequence[float]) -> str:
    return f"{decimal(min(values))} to {decimal(max(values))}"


def _histogram(values: list[float]) -> tuple[list[float], list[float]]:
    """Return the edges of equal bins, one of them at 0, and the number of values in each."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    width = (high - low) / BARS or 1.0
    first, last = math.floor(low / width), max(math.ceil(high / width), math.floor(low / width) + 1)
    counts = [0.0] * (last - first)
    for value in values:
        counts[min(math.floor(value / width) - first, len(counts) - 1)] += 1
    return [number * width for number in range(first, last + 1)], counts


def spread(record: RunRecord) -> list[dict[str, str]]:
    """Return the distribution of the targets in each split, as text."""
    splits = (record.metrics.get("data") or {}).get("splits") or {}
    names = target_names(record)
    return [
        {
            "target": name,
            "split": role,
            **{key: decimal(figures[name].get(key)) for key in ("min", "mean", "max", "standard_deviation")},
        }
        for name in names
        for role in splits
        if name in (figures := splits[role].get("targets") or {})
    ]
