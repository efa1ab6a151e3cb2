"""Results of regression per target, for model cards and reports."""

from __future__ import annotations

import math
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import REGRESSION, finite


def is_regression(record: RunRecord) -> bool:
    """Whether a run is a regression."""
    return record.primary in REGRESSION


def target_names(record: RunRecord) -> list[str]:
    """Return the names of the targets."""
    several = [str(entry.get("target")) for entry in record.scores.get("per_target") or []]
    if several:
        return several
    known = ((record.metrics.get("data") or {}).get("splits") or {}).get("train") or {}
    return list(known.get("targets") or {})[:1] or [record.recipe.data.target_column]


def pairs(record: RunRecord) -> dict[str, list[tuple[float, float]]]:
    """Return (reference, prediction) of every row that has both, by target."""
    names = target_names(record)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for row in record.predictions:
        for name, reference, prediction in _of_row(row, names):
            found[name].append((reference, prediction))
    return found


def _of_row(row: dict[str, Any], names: list[str]) -> list[tuple[str, float, float]]:
    """Return (target, reference, prediction) of the targets in a row of predictions.jsonl."""
    reference, prediction = row.get("reference"), row.get("prediction")
    if not isinstance(reference, dict) or not isinstance(prediction, dict):
        reference, prediction = {names[0]: reference}, {names[0]: prediction}
    both = [(name, finite(reference.get(name)), finite(prediction.get(name))) for name in names]
    return [(name, first, second) for name, first, second in both if first is not None and second is not None]


def errors_by_row(record: RunRecord) -> dict[int, float]:
    """Return the absolute error of each row, by its id; for several targets, the largest of them.

    With several targets, errors are in standard deviations of their references.
    """
    names = target_names(record)
    deviations = {name: _deviation([first for first, _ in points]) for name, points in pairs(record).items()}
    found = {}
    for row in record.predictions:
        off = [
            abs(prediction - reference) / (deviations[name] if len(names) > 1 else 1.0)
            for name, reference, prediction in _of_row(row, names)
        ]
        if off:
            found[row["id"]] = max(off)
    return found


def _deviation(values: list[float]) -> float:
    if not values:
        return 1.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) or 1.0
