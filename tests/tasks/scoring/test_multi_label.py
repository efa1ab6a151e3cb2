"""Metrics of many labels per row and the choice of their threshold, against hand-worked examples and slow code."""

from __future__ import annotations

import numpy as np
import pytest
from slow_metrics import multi_data, slow_average_precision, slow_f1, slow_multi_f1

from sft_hf.tasks.scoring import classification as metrics


def test_hand_worked_multi_label():
    scores = [[0.9, 0.5, 0.1], [0.4, 0.6, 0.2], [0.8, 0.3, 0.3]]
    references = [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    # At 0.5: label a TP 1, FP 1, FN 1; label b TP 1, FP 1 (0.5 is enough), FN 0; label c none of them.
    result = metrics.multi_label_metrics(scores, references, 0.5, ["a", "b", "c"])
    assert result["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert result["macro_f1"] == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    # AP of a: the positives are ranked 1st and 3rd; of b: 1st; c has none and is left out.
    assert result["map"] == pytest.approx(((1 / 2) * 1 + (1 / 2) * (2 / 3) + 1) / 2)
    assert result["subset_accuracy"] == 0.0
    assert (result["num_examples"], result["threshold"]) == (3, 0.5)
    assert [tuple(row.values()) for row in result["per_class"]] == [
        ("a", 0.5, 0.5, 0.5, 2),
        ("b", 0.5, 1.0, pytest.approx(2 / 3), 1),
        ("c", 0.0, 0.0, 0.0, 0),
    ]


@pytest.mark.parametrize(("seed", "labels"), [(0, 2), (1, 4), (2, 7), (3, 1)])
def test_multi_label_agrees_with_brute_force(seed, labels):
    scores, references = multi_data(labels=labels, seed=seed)
    names = [f"l{i}" for i in range(labels)]
    result = metrics.multi_label_metrics(scores, references, 0.4, names, confidence_samples=0)
    predicted = (scores >= 0.4).astype(int)
    micro, macro = slow_multi_f1(predicted.tolist(), references.tolist())
    assert result["micro_f1"] == pytest.approx(micro)
    assert result["macro_f1"] == pytest.approx(macro)
    pairs = zip(scores.T.tolist(), references.T.tolist(), strict=True)
    precisions = [slow_average_precision(s, t) for s, t in pairs if any(t)]
    assert result["map"] == pytest.approx(sum(precisions) / len(precisions))
    same = [p == r for p, r in zip(predicted.tolist(), references.tolist(), strict=True)]
    assert result["subset_accuracy"] == pytest.approx(sum(same) / len(same))
    assert [row["support"] for row in result["per_class"]] == references.sum(axis=0).tolist()
    for label, row in enumerate(result["per_class"]):
        assert row["f1"] == pytest.approx(float(slow_f1(predicted[:, label], references[:, label])))


def test_no_positive_anywhere_gives_zero():
    result = metrics.multi_label_metrics([[0.1, 0.2]], [[0, 0]], 0.5, ["a", "b"])
    assert (result["micro_f1"], result["macro_f1"], result["map"]) == (0.0, 0.0, 0.0)
    assert result["subset_accuracy"] == 1.0
    assert result["micro_f1_ci95"] == result["macro_f1_ci95"] == [0.0, 0.0]


def test_a_label_that_is_always_true_has_average_precision_one():
    result = metrics.MeanAveragePrecision().compute(predictions=[[0.3], [0.1]], references=[[1], [1]])
    assert result == {"map": 1.0}


def test_average_precision_takes_logits_as_well():
    scores, references = multi_data()
    logits = np.log(scores + 0.01)
    compute = metrics.MeanAveragePrecision().compute
    assert compute(predictions=logits, references=references) == compute(predictions=scores, references=references)


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_threshold_is_the_best_of_the_grid(metric, seed):
    scores, references = multi_data(rows=25, seed=seed)
    position = ["micro_f1", "macro_f1"].index(metric)
    found = []
    for percent in range(5, 96):
        predicted = (scores >= percent / 100).astype(int).tolist()
        value = round(slow_multi_f1(predicted, references.tolist())[position], 12)
        found.append((-value, abs(percent - 50), percent))
    assert metrics.choose_threshold(scores, references, metric) == min(found)[2] / 100


def test_threshold_ties_go_to_the_one_nearest_a_half():
    assert metrics.choose_threshold([[0.1], [0.9]], [[0], [1]]) == 0.5
    assert metrics.choose_threshold([[0.1], [0.42]], [[0], [1]]) == 0.42
    assert metrics.choose_threshold([[0.575], [0.9]], [[0], [1]]) == 0.58
    assert metrics.choose_threshold([[0.1], [0.9]], [[0], [0]]) == 0.5  # F1 is 0 at all of them


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
def test_equally_near_thresholds_that_tie_go_to_the_lower(metric):
    # At 0.49: TP 2, FP 2, so 4/6. At 0.50: TP 1, FP 2, FN 1, so 2/5. At 0.51: TP 1, FN 1, so 2/3.
    scores, references = [[0.9], [0.495], [0.505], [0.505]], [[1], [1], [0], [0]]
    assert metrics.choose_threshold(scores, references, metric) == 0.49


def test_threshold_is_met_by_an_equal_score():
    assert metrics.apply_threshold([[0.3, 0.29, 0.31]], 0.3).tolist() == [[1, 0, 1]]
    assert isinstance(metrics.choose_threshold([[0.5]], [[1]]), float)
