"""Summary of a run's data for metrics.json: rows, lengths, labels, findings and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sft_hf.data.examples import Examples
    from sft_hf.data.findings import Finding
    from sft_hf.tasks.base import Task

HISTOGRAM_BARS = 20


def data_overview(
    task: Task[Any], examples: Mapping[str, Examples], findings: Sequence[Finding], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return `splits`, `findings` and `notes` of metrics.json, as plain data.

    Args:
        task: the fitted task.
        examples: prepared rows by role, without train if it is a stream.
        findings: see `sft_hf.jobs.inputs.data_findings`.
        notes: notes on how the data were read, and what was left out; see `Splits`.
    """
    return {
        "splits": {role: _split(task, rows) for role, rows in examples.items()},
        "findings": [{"level": finding.level, "text": finding.text} for finding in findings],
        "notes": [*notes, *(note for rows in examples.values() for note in rows.notes)],
    }


def _split(task: Task[Any], rows: Examples) -> dict[str, Any]:
    result: dict[str, Any] = {"num_examples": len(rows)}
    if (measured := task.measured_lengths(rows)) is not None and len(rows):
        unit, lengths = measured
        result |= {"length_unit": unit, "lengths": _lengths(lengths)}
    if len(rows) and not rows.labelled:
        return result | {"unlabelled": True}
    if (counts := task.scorer.label_counts(rows.references)) is not None:
        result["labels"] = counts
    if len(rows) and (spread := task.scorer.target_spread(rows.references)) is not None:
        result["targets"] = spread
    return result


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    median, p95, longest = np.quantile(lengths, [0.5, 0.95, 1.0])
    counts, edges = np.histogram(lengths, bins=min(HISTOGRAM_BARS, len(np.unique(lengths))))
    return {
        "median": float(median),
        "p95": float(p95),
        "max": float(longest),
        "histogram": {"edges": [float(edge) for edge in edges], "counts": counts.tolist()},
    }
