"""Curves of a report that need the outputs for every row: ROC, precision and recall, risk and coverage.

They are computed from outputs/ (see `sft_hf.core.run.outputs`) with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sft_hf.core.run.outputs import MULTI_LABEL, SINGLE_LABEL, SplitOutputs
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import axis_percent, count, decimal, finite, percent, rows
from sft_hf.publishing.regression import is_regression
from sft_hf.publishing.report.charts import Line, line_panel
from sft_hf.publishing.report.mistakes import is_error
from sft_hf.publishing.report.pages import wording

MOST_POINTS = 200  # points of a curve
MOST_LABELS = 10  # labels of a multi-label model with their own curves
WORST_CLASSES = 5
GRID = np.linspace(0.0, 1.0, 101)  # false positive rates or recalls at which the curves of classes are averaged
STYLES = 6  # colours of lines, in the style sheet

Floats = NDArray[np.float64]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """The ROC and precision-recall curves of a label, or of all labels, with the areas below them.

    `support` is the number of positive rows; None for a mean. `roc` has (false positive rate, recall), `precision` has
    (recall, precision), from left to right, at most MOST_POINTS each.
    """

    label: str
    support: int | None
    auc: float
    average_precision: float
    roc: Points
    precision: Points


# --- ROC, precision and recall -----------------------------------------------------------------------------------


def label_curves(outputs: SplitOutputs) -> list[Curve]:
    """Return the curves that a report draws, starting with the one for all labels.

    Two labels: one curve each. More labels: the mean over labels (one against all others), and the WORST_CLASSES by
    average precision. Multi-label: all decisions together (micro), and at most the MOST_LABELS worst labels. Labels
    that no row or every row has are left out, also from the mean. Empty for anything but a labelled split of a
    classifier.
    """
    if outputs.problem_type not in (SINGLE_LABEL, MULTI_LABEL) or outputs.references is None or not len(outputs):
        return []
    scores, truth = outputs.probabilities(), _truth(outputs)
    if len(outputs.labels) == 2 and not outputs.multi_label:
        return _each(outputs, scores, truth, [1, 0])
    usable = [label for label in range(len(outputs.labels)) if 0 < truth[:, label].sum() < len(truth)]
    if not usable:
        return []
    every = _each(outputs, scores, truth, usable)
    if outputs.multi_label:
        first, most = _curve("all labels", truth.ravel(), scores.ravel()), MOST_LABELS
    else:
        first, most = _mean(every, scores, truth, usable), WORST_CLASSES
    return [first, *sorted(every, key=lambda curve: curve.average_precision)[:most]]


def _truth(outputs: SplitOutputs) -> NDArray[np.bool_]:
    """Return the labels of each row, [rows, labels]."""
    references = outputs.references
    assert references is not None
    if outputs.multi_label:
        return references.astype(bool)
    return np.asarray(references[:, None] == np.arange(len(outputs.labels)))


def _each(outputs: SplitOutputs, scores: Floats, truth: NDArray[np.bool_], labels: Sequence[int]) -> list[Curve]:
    names = outputs.labels
    return [
        _curve(names[label], truth[:, label], scores[:, label])
        for label in labels
        if 0 < truth[:, label].sum() < len(truth)
    ]


def _curve(name: str, truth: NDArray[np.bool_], scores: Floats) -> Curve:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    false, true, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    return Curve(
        name,
        int(truth.sum()),
        float(roc_auc_score(truth, scores)),
        float(average_precision_score(truth, scores)),
        thinned(false, true),
        thinned(recall[::-1], precision[::-1]),
    )


def _mean(every: Sequence[Curve], scores: Floats, truth: NDArray[np.bool_], labels: Sequence[int]) -> Curve:
    """Return the mean of the labels' curves: recall at each false positive rate, precision at each recall."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    recalls, precisions = [], []
    for label in labels:
        false, true, _ = roc_curve(truth[:, label], scores[:, label])
        precision, recall, _ = precision_recall_curve(truth[:, label], scores[:, label])
        recalls.append(np.interp(GRID, false, true))
        precisions.append(np.interp(GRID, recall[::-1], precision[::-1]))
    return Curve(
        "mean of labels",
        None,
        float(np.mean([curve.auc for curve in every])),
        float(np.mean([curve.average_precision for curve in every])),
        _points(GRID, np.mean(recalls, axis=0).clip(0, 1)),
        _points(GRID, np.mean(precisions, axis=0).clip(0, 1)),
    )


def thinned(x: NDArray[Any], y: NDArray[Any], most: int = MOST_POINTS) -> Points:
    """Return at most `most` points of a curve, evenly spaced along it, including both ends."""
    if len(x) <= most:
        return _points(x, y)
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = np.searchsorted(along, np.linspace(0.0, along[-1], most))
    chosen = np.unique(np.clip(chosen, 0, len(x) - 1))
    chosen[-1] = len(x) - 1
    return _points(x[chosen], y[chosen])


def _points(x: NDArray[Any], y: NDArray[Any]) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def ranking(record: RunRecord) -> dict[str, Any] | None:
    """Return the two panels, and their areas as a table; None if the run has no outputs that can be ranked."""
    found = [] if record.outputs is None else label_curves(record.outputs)
    if not found:
        return None
    assert record.outputs is not None
    told = "; ".join(
        f"{wording(curve.label, 40)}: area {decimal(curve.auc)}, average precision {decimal(curve.average_precision)}"
        for curve in found
    )
    two = len(record.outputs.labels) == 2 and not record.outputs.multi_label
    diagonal = Line("", [(0.0, 0.0), (1.0, 1.0)], "ideal")
    roc = [diagonal, *(_line(number, curve.label, curve.auc, curve.roc) for number, curve in enumerate(found))]
    precision = [
        _line(number, curve.label, curve.average_precision, curve.precision) for number, curve in enumerate(found)
    ]
    return {
        "roc": _panel(
            f"ROC curve on {record.split}", f"Recall against false positive rate. {told}.", roc[: 2 if two else None]
        ),
        "precision": _panel(f"Precision and recall on {record.split}", f"Precision against recall. {told}.", precision),
        "rows": [
            {
                "label": curve.label,
                "support": "" if curve.support is None else count(curve.support),
                "auc": decimal(curve.auc),
                "average_precision": decimal(curve.average_precision),
            }
            for curve in found
        ],
        "shown": _which(record.outputs, len(found)),
    }


def _which(outputs: SplitOutputs, drawn: int) -> str:
    """Return a sentence on which labels have curves."""
    if len(outputs.labels) == 2 and not outputs.multi_label:
        return "Of the two labels, one is the mirror of the other in the ROC curve, which therefore has one line."
    if outputs.multi_label:
        some = f" The {drawn - 1} labels with the lowest average precision are drawn." if drawn > MOST_LABELS else ""
        return f"“All labels” counts every decision of every row (micro-average).{some}"
    return (
        "“Mean of labels” is the mean of every label's curve, each against all others (macro-average). "
        f"The {drawn - 1} labels with the lowest average precision are drawn."
    )


def _line(number: int, label: str, area: float, points: Points) -> Line:
    style = f"l{number % STYLES + 1}" + (" dashed" if number >= STYLES else "")
    return Line(f"{wording(label, 11)} {area:.3f}", points, style)


def _panel(title: str, description: str, lines: Sequence[Line]) -> Markup | None:
    return line_panel(
        title,
        description,
        lines,
        (0.0, 1.0),
        x_format=axis_percent,
        y_format=axis_percent,
        y_range=(0.0, 1.0),
        height=320,
        right=120,
    )


# --- risk and coverage -------------------------------------------------------------------------------------------


def risk_by_coverage(confidences: Floats, right: NDArray[np.bool_]) -> tuple[Points, float]:
    """Return (fraction answered, fraction of the answers that are wrong), most confident rows first, and the area.

    Rows with the same confidence are answered together. The area is the mean risk over coverages 1/n, ..., n/n (AURC).
    Source: Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.

    Args:
        confidences: [rows].
        right: [rows].
    """
    order = np.argsort(-confidences, kind="stable")
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(~right[order]) / answered
    last = np.append(np.flatnonzero(np.diff(confidences[order])), len(order) - 1)  # last of each confidence
    together = risk[last][np.searchsorted(last, np.arange(len(order)))]
    return thinned(answered[last] / len(order), risk[last]), float(together.mean())


def confidence_and_correctness(record: RunRecord) -> tuple[Floats, NDArray[np.bool_]] | None:
    """Return confidence and correctness of each answer; None if they are unknown.

    For a classifier, from its outputs: whether the most probable label is the row's label, or one of them. Otherwise,
    from the predictions: a transcript is correct if every word is.
    """
    if is_regression(record):
        return None
    outputs = record.outputs
    if outputs is not None and outputs.logits is not None and outputs.references is not None and len(outputs):
        scores = outputs.probabilities()
        best = scores.argmax(axis=1)
        return scores.max(axis=1), _truth(outputs)[np.arange(len(best)), best]
    if not record.recipe.task.writes_transcripts:
        return None
    found = [(finite(row.get("confidence")), not is_error(row)) for row in record.predictions]
    known = [(confidence, right) for confidence, right in found if confidence is not None]
    if not known:
        return None
    return np.array([confidence for confidence, _ in known]), np.array([right for _, right in known])


def coverage(record: RunRecord) -> dict[str, Any] | None:
    """Return the panel of risk and coverage, and a sentence; None if there are no confidences."""
    found = confidence_and_correctness(record)
    if found is None:
        return None
    confidences, right = found
    points, area = risk_by_coverage(confidences, right)
    told = "; ".join(
        f"{percent(part)} answered: {percent(_risk_at(points, part))} wrong" for part in (0.5, 0.8, 0.9, 1.0)
    )
    threshold = None if record.outputs is None else record.outputs.abstention_threshold
    answered = None if threshold is None else float((confidences >= threshold).mean())
    chart = line_panel(
        f"Errors by coverage on {record.split}",
        f"Share of answers that are wrong, if only the most confident rows are answered: {told}.",
        [Line(percent(points[-1][1]), points, "own")],
        (0.0, 1.0),
        mark=None if answered is None else (answered, f"this run answers {percent(answered)}"),
        x_format=axis_percent,
        y_format=axis_percent,
    )
    return {
        "chart": chart,
        "sentence": f"If only the most confident rows were answered, fewer answers would be wrong: {told} "
        f"({rows(len(confidences))}; area under the curve {decimal(area)}).",
    }


def _risk_at(points: Points, part: float) -> float:
    """Return the risk at the lowest coverage of at least `part`."""
    return next((risk for share, risk in points if share >= part - 1e-9), points[-1][1])
