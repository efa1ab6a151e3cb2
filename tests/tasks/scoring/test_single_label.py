"""Metrics of one label per row, against hand-worked examples and slow code."""

from __future__ import annotations

import numpy as np
import pytest
from slow_metrics import single_data, slow_f1, slow_macro_f1

from sft_hf.tasks.scoring import classification as metrics


def test_hand_worked_single_label():
    # Class 0: TP 2, FP 0, FN 1. Class 1: TP 1, FP 2, FN 0. Class 2: TP 0, FP 0, FN 1. Class 3: nowhere.
    result = metrics.single_label_metrics([0, 0, 1, 1, 1], [0, 0, 0, 1, 2], ["a", "b", "c", "d"])
    assert result["num_examples"] == 5
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["macro_f1"] == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert result["confusion_matrix"] == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    rows = [tuple(row.values()) for row in result["per_class"]]
    assert list(result["per_class"][0]) == ["label", "precision", "recall", "f1", "support"]
    assert rows == [
        ("a", 1.0, pytest.approx(2 / 3), pytest.approx(4 / 5), 3),
        ("b", pytest.approx(1 / 3), 1.0, pytest.approx(1 / 2), 1),
        ("c", 0.0, 0.0, 0.0, 1),
        ("d", 0.0, 0.0, 0.0, 0),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_single_label_agrees_with_brute_force(seed):
    predictions, references = single_data(rows=25, labels=6, seed=seed)
    result = metrics.single_label_metrics(predictions, references, list("abcdef"), confidence_samples=0)
    pairs = list(zip(predictions.tolist(), references.tolist(), strict=True))
    assert result["accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / 25)
    assert result["macro_f1"] == pytest.approx(slow_macro_f1(predictions.tolist(), references.tolist()))
    assert result["confusion_matrix"] == [[pairs.count((p, r)) for p in range(6)] for r in range(6)]
    for label, row in enumerate(result["per_class"]):
        exact = slow_f1(predictions == label, references == label)
        assert row["f1"] == pytest.approx(float(exact))
        assert row["support"] == sum(r == label for _, r in pairs)


def test_macro_f1_leaves_out_classes_that_occur_nowhere_only():
    assert metrics.MacroF1().compute(predictions=[0, 5], references=[0, 5]) == {"macro_f1": 1.0}
    # Class 1 is predicted but never true: it counts, as 0.
    result = metrics.MacroF1().compute(predictions=[0, 1], references=[0, 0])
    assert result["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_single_label_and_more_classes_than_half_the_rows_give_no_warning():
    one = metrics.single_label_metrics([0, 0], [0, 0], ["only"], confidence_samples=10)
    assert (one["accuracy"], one["macro_f1"], one["confusion_matrix"]) == (1.0, 1.0, [[2]])
    many = metrics.single_label_metrics(range(30), range(30), [str(i) for i in range(30)])
    assert many["macro_f1_ci95"] == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_any_integer_type_will_do(dtype):
    predictions, references = single_data()
    names = list("abcde")
    expected = metrics.single_label_metrics(predictions, references, names, confidence_samples=5)
    given = metrics.single_label_metrics(
        predictions.astype(dtype), references.astype(dtype), names, confidence_samples=5
    )
    assert given == expected
