"""Metrics of single-label and multi-label classification, with confidence intervals.

Every metric is a fraction in [0, 1], not a percentage, and results consist of plain Python numbers and lists, ready for
JSON. The metrics are computed by scikit-learn; `evaluate.Metric` provides the common interface (`compute`, `add`,
`add_batch`, `evaluate.combine`). `evaluate.load` is not used, as it downloads code: the classes here use neither the
network nor the disk.

In the shapes, N is the number of examples and C the number of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import evaluate
import numpy as np
import numpy.typing as npt
from datasets import Features, List, Value
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from sft_hf.tasks.scoring.inputs import (
    apply_threshold,
    binary_matrix,
    check_range,
    checked_scores,
    checked_single,
    probability_matrix,
    same_shape,
)
from sft_hf.tasks.scoring.intervals import (
    Floats,
    Ints,
    bootstrap_interval,
    bootstrap_ratio_interval,
    f1_from_counts,
    proportion_interval,
    resampled_label_macro_f1,
    resampled_macro_f1,
    resampled_micro_f1,
)

__all__ = [
    "Accuracy",
    "ConfusionMatrix",
    "MacroF1",
    "MeanAveragePrecision",
    "MultiLabelF1",
    "PerClass",
    "apply_threshold",
    "bootstrap_interval",
    "bootstrap_ratio_interval",
    "choose_threshold",
    "multi_label_metrics",
    "proportion_interval",
    "single_label_metrics",
]

_GRID_PERCENT = np.arange(5, 96)
_SAME_F1 = 1e-12


class _LocalMetric(evaluate.Metric):
    """An `evaluate.Metric` that is kept in memory, and checks its input before storing it."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        # The base class creates this folder under HF_HOME even if everything is kept in memory.
        return ""

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Compute the metric over all added examples and the given ones.

        Args:
            predictions, references: see the class; both or neither.
            **kwargs: further arguments of the class, such as `num_labels`.

        Raises:
            ValueError: invalid shapes, types or values, or no examples at all.
        """
        if self.writer is None:
            # Nothing was added before, so the conversion to an Arrow table and Python lists can be skipped, which takes
            # half a second for 5,000 rows of 150 labels.
            checked = self._checked(predictions, references)
            result = self._compute(predictions=checked[0], references=checked[1], **kwargs)
        else:
            result = super().compute(predictions=predictions, references=references, **kwargs)
        return dict(result)

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Add examples for a later `compute`; raises ValueError as `compute` does."""
        checked = self._checked(predictions, references)
        super().add_batch(predictions=checked[0], references=checked[1])

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Add one example for a later `compute`; raises ValueError as `compute` does."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


class _SingleLabelMetric(_LocalMetric):
    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features, format="numpy")

    def _checked(self, predictions: Any, references: Any) -> tuple[Ints, Ints]:
        return checked_single(predictions, references)


class _MultiLabelMetric(_LocalMetric):
    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": List(Value("float64")), "references": List(Value("int64"))})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)


class Accuracy(_SingleLabelMetric):
    """Fraction of examples whose predicted label is the reference label.

    `compute(predictions=[N] label indices, references=[N] label indices)` returns `{"accuracy": float}`, in
    [0, 1]. Raises ValueError for an empty input, a length mismatch, or anything but integers >= 0.
    """

    def _compute(self, predictions: Ints, references: Ints) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_SingleLabelMetric):
    """Unweighted mean of the F1 of the classes that occur in the references or in the predictions.

    F1 = 2 TP / (2 TP + FP + FN) of each class, then their mean: the "averaged F1" of J. Opitz and S. Burst, Macro F1
    and Macro F1, arXiv:1911.03347, and scikit-learn's `average="macro"` without `labels`. A class that occurs only in
    one of the two counts as 0. A class that occurs in neither is left out, so the result differs from the mean over
    `PerClass` if the evaluation set has no example of a class.

    `compute(predictions=[N] label indices, references=[N] label indices)` returns `{"macro_f1": float}`, in
    [0, 1]. Raises ValueError for an empty input, a length mismatch, or anything but integers >= 0.
    """

    def _compute(self, predictions: Ints, references: Ints) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


class ConfusionMatrix(_SingleLabelMetric):
    """How often each reference label (row) was predicted as each label (column).

    `compute(predictions=[N] label indices, references=[N] label indices, num_labels=C)` returns
    `{"confusion_matrix": C lists of C ints}`, which add up to N. Raises ValueError for an empty input, a
    length mismatch, or an index outside [0, C).
    """

    def _compute(self, predictions: Ints, references: Ints, num_labels: int) -> dict[str, list[list[int]]]:
        check_range(predictions, references, num_labels)
        if num_labels == 1:  # scikit-learn returns the same with a warning
            return {"confusion_matrix": [[len(references)]]}
        counts = confusion_matrix(references, predictions, labels=range(num_labels))
        return {"confusion_matrix": counts.tolist()}


class PerClass(_SingleLabelMetric):
    """Precision, recall, F1 and support (number of reference examples) of every label, in label order.

    Precision = TP / (TP + FP), recall = TP / (TP + FN), F1 their harmonic mean, each in [0, 1], and 0 if the
    denominator is 0 (C. J. van Rijsbergen, Information Retrieval, 2nd ed. 1979, chapter 7).

    `compute(predictions=[N] label indices, references=[N] label indices, label_names=C names)` returns
    `{"per_class": C dicts of "label", "precision", "recall", "f1", "support"}`. Raises ValueError for an
    empty input, a length mismatch, or an index outside [0, C).
    """

    def _compute(
        self, predictions: Ints, references: Ints, label_names: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        check_range(predictions, references, len(label_names))
        columns = precision_recall_fscore_support(
            references, predictions, labels=range(len(label_names)), average=None, zero_division=0
        )
        return {"per_class": _per_class_rows(label_names, columns)}


class MultiLabelF1(_MultiLabelMetric):
    """Micro-F1 and macro-F1 of multi-label predictions.

    micro-F1 pools TP, FP and FN of all labels; macro-F1 is the unweighted mean of the F1 of all C labels, including
    labels that do not occur. F1 is 0 if its denominator 2 TP + FP + FN is 0.

    `compute(predictions=[N, C] of 0/1, references=[N, C] of 0/1)` returns `{"micro_f1": float, "macro_f1":
    float}`, in [0, 1]. Raises ValueError for an empty input, a shape mismatch, or anything but 0 and 1.
    """

    def _checked(self, predictions: Any, references: Any) -> tuple[Ints, Ints]:
        return same_shape(binary_matrix(predictions, "predictions"), binary_matrix(references, "references"))

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        # Examples added in batches come back as floats, and batches may differ in width.
        predictions, references = self._checked(predictions, references)
        micro = _multi_label_scores(predictions, references, average="micro")[2]
        macro = _multi_label_scores(predictions, references, average=None)[2].mean()
        return {"micro_f1": float(np.squeeze(micro)), "macro_f1": float(macro)}


class MeanAveragePrecision(_MultiLabelMetric):
    """Mean of the average precision (AP) over the labels.

    AP = sum over n of (R_n - R_{n-1}) P_n along the examples ranked by score, without interpolation
    (scikit-learn's `average_precision_score`; C. D. Manning et al., Introduction to Information Retrieval,
    2008, section 8.4). Labels without a positive reference have no recall and no AP, and are left out of the mean; if
    no label has one, the result is 0, like F1.

    `compute(predictions=[N, C] scores, higher is more likely, references=[N, C] of 0/1)` returns
    `{"map": float}`, in [0, 1]. Raises ValueError for an empty input, a shape mismatch, a score that is not
    finite, or a reference that is not 0 or 1.
    """

    def _checked(self, predictions: Any, references: Any) -> tuple[Floats, Ints]:
        return checked_scores(predictions, references)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        scores, truth = self._checked(predictions, references)
        labels = np.flatnonzero(truth.any(axis=0))
        values = [average_precision_score(truth[:, label], scores[:, label]) for label in labels]
        return {"map": float(np.mean(values)) if values else 0.0}


def single_label_metrics(
    predictions: npt.ArrayLike,
    references: npt.ArrayLike,
    label_names: Sequence[str],
    *,
    confidence_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of a single-label classifier.

    Args:
        predictions: [N] integers in [0, C).
        references: [N] integers in [0, C).
        label_names: C names, in index order.
        confidence_samples: resamples of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.

    Returns:
        `num_examples`; `accuracy` and `macro_f1` (see `Accuracy`, `MacroF1`), in [0, 1]; `accuracy_ci95`,
        [low, high] by `proportion_interval`; `macro_f1_ci95` by `bootstrap_interval` over examples; `per_class`
        (`PerClass`); `confusion_matrix` (`ConfusionMatrix`).

    Raises:
        ValueError: an empty input, a length mismatch, not integers, or an index outside [0, C).
    """
    predicted, truth = checked_single(predictions, references)
    check_range(predicted, truth, len(label_names))
    inputs = {"predictions": predicted, "references": truth}
    result: dict[str, Any] = {"num_examples": len(truth)}
    result |= Accuracy().compute(**inputs) | MacroF1().compute(**inputs)
    if confidence_samples:
        options = {"samples": confidence_samples, "seed": seed}
        result["accuracy_ci95"] = list(proportion_interval(predicted == truth))
        macro = resampled_macro_f1(predicted, truth)
        result["macro_f1_ci95"] = list(bootstrap_interval(macro, len(truth), **options))
    result |= PerClass().compute(**inputs, label_names=label_names)
    result |= ConfusionMatrix().compute(**inputs, num_labels=len(label_names))
    return result


def multi_label_metrics(
    scores: npt.ArrayLike,
    references: npt.ArrayLike,
    threshold: float,
    label_names: Sequence[str],
    *,
    confidence_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of a multi-label classifier.

    Args:
        scores: [N, C] probabilities in [0, 1].
        references: [N, C] of 0/1.
        threshold: in (0, 1); minimum score of a predicted label (`apply_threshold`).
        label_names: C names, in index order.
        confidence_samples: resamples of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.

    Returns:
        `num_examples`; `threshold`; `micro_f1` and `macro_f1` (`MultiLabelF1`); `map`
        (`MeanAveragePrecision`, independent of the threshold); `subset_accuracy`, the fraction of examples whose labels
        are all correct; `micro_f1_ci95` and `macro_f1_ci95`, [low, high] by `bootstrap_interval` over examples;
        `per_class`, see `PerClass`. All fractions are in [0, 1].

    Raises:
        ValueError: an empty input, a shape that is not [N, C], a score or threshold outside its range, or a
            reference that is not 0 or 1.
    """
    checked, truth = checked_scores(scores, references)
    if truth.shape[1] != len(label_names):
        raise ValueError(f"{truth.shape[1]} label columns but {len(label_names)} label names")
    predicted = apply_threshold(checked, threshold)
    result: dict[str, Any] = {"num_examples": len(truth), "threshold": float(threshold)}
    result |= MultiLabelF1().compute(predictions=predicted, references=truth)
    result |= MeanAveragePrecision().compute(predictions=checked, references=truth)
    result["subset_accuracy"] = float((predicted == truth).all(axis=1).mean())
    if confidence_samples:
        options = {"samples": confidence_samples, "seed": seed}
        micro, macro = resampled_micro_f1(predicted, truth), resampled_label_macro_f1(predicted, truth)
        result["micro_f1_ci95"] = list(bootstrap_interval(micro, len(truth), **options))
        result["macro_f1_ci95"] = list(bootstrap_interval(macro, len(truth), **options))
    columns = _multi_label_scores(predicted, truth, average=None)
    result["per_class"] = _per_class_rows(label_names, columns)
    return result


def choose_threshold(
    scores: npt.ArrayLike, references: npt.ArrayLike, metric: Literal["micro_f1", "macro_f1"] = "micro_f1"
) -> float:
    """Return the threshold for all labels that maximizes F1.

    For VALIDATION data only: a threshold chosen on the test set fits its noise, and metrics reported on it are then too
    high.

    Args:
        scores: [N, C] probabilities in [0, 1].
        references: [N, C] of 0/1.
        metric: which F1 of `MultiLabelF1`.

    Returns:
        One of 0.05, 0.06, ..., 0.95. Ties are broken by the smaller distance to 0.5, then by the lower threshold.

    Raises:
        ValueError: an unknown metric, an empty input, a shape mismatch, a score outside [0, 1], or a
            reference that is not 0 or 1.
    """
    if metric not in ("micro_f1", "macro_f1"):
        raise ValueError(f"metric must be micro_f1 or macro_f1, got {metric}")
    checked, truth = checked_scores(scores, references)
    probability_matrix(checked)
    reference_counts = truth.sum(axis=0)
    positive = truth.astype(bool)
    values = np.empty(len(_GRID_PERCENT))
    for position, percent in enumerate(_GRID_PERCENT):
        predicted = checked >= percent / 100
        hits = (predicted & positive).sum(axis=0)
        occurrences = predicted.sum(axis=0) + reference_counts
        if metric == "micro_f1":
            hits, occurrences = hits.sum(), occurrences.sum()
        values[position] = f1_from_counts(hits, occurrences).mean()
    # A macro mean of the same numbers may differ in the last bits, depending on their order.
    best = _GRID_PERCENT[values >= values.max() - _SAME_F1]
    return float(best[np.argmin(np.abs(best - 50))] / 100)


def _multi_label_scores(predictions: Ints, references: Ints, *, average: str | None) -> tuple[Any, ...]:
    """Return precision, recall, F1 and support, per label (`average=None`) or micro-averaged."""
    if references.shape[1] == 1:
        # scikit-learn treats one column as a two-class problem, and would also score "not this label".
        columns = precision_recall_fscore_support(
            references[:, 0], predictions[:, 0], labels=[1], average=None, zero_division=0
        )
    else:
        columns = precision_recall_fscore_support(references, predictions, average=average, zero_division=0)
    return tuple(columns)


def _per_class_rows(label_names: Sequence[str], columns: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [
        {
            "label": name,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(label_names, *columns, strict=True)
    ]
