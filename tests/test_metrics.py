"""Metrics and their bootstrap, against hand-worked examples and against slow code that takes another way."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import evaluate
import numpy as np
import pytest

from sft_hf import bootstrap, metrics

SINGLE = [metrics.Accuracy, metrics.MacroF1, metrics.ConfusionMatrix, metrics.PerClass]
MULTI = [metrics.MultiLabelF1, metrics.MeanAveragePrecision]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def slow_f1(predicted, true):
    """F1 of two lists of booleans, exactly."""
    pairs = list(zip(predicted, true, strict=True))
    both = sum(1 for p, t in pairs if p and t)
    wrong = sum(1 for p, t in pairs if bool(p) != bool(t))
    return Fraction(2 * both, 2 * both + wrong) if both + wrong else Fraction(0)


def slow_macro_f1(predictions, references):
    classes = sorted(set(predictions) | set(references))
    return float(
        sum(slow_f1([p == c for p in predictions], [r == c for r in references]) for c in classes) / len(classes)
    )


def slow_multi_f1(predictions, references):
    columns = list(zip(zip(*predictions, strict=True), zip(*references, strict=True), strict=True))
    micro = slow_f1([p for row in predictions for p in row], [r for row in references for r in row])
    macro = sum(slow_f1(p, t) for p, t in columns) / len(columns)
    return float(micro), float(macro)


def slow_average_precision(scores, true):
    """Sum of precision at each distinct score times the recall gained there: ties enter together."""
    total, value, before = sum(true), 0.0, 0
    for cut in sorted(set(scores), reverse=True):
        taken = [t for s, t in zip(scores, true, strict=True) if s >= cut]
        value += (sum(taken) - before) / total * (sum(taken) / len(taken))
        before = sum(taken)
    return value


def slow_interval(statistic, num_rows, samples, seed):
    """Row by row: the 2.5 % and 97.5 % points of the sorted values, interpolated linearly."""
    values = []
    for chunk in bootstrap.resample_indices(num_rows, samples=samples, seed=seed):
        values.extend(statistic(list(line)) for line in chunk)
    values.sort()

    def point(share):
        place = share * (len(values) - 1)
        low, high = math.floor(place), math.ceil(place)
        return values[low] + (values[high] - values[low]) * (place - low)

    return [point(0.025), point(0.975)]


def single_data(rows=40, labels=5, seed=1):
    generator = np.random.default_rng(seed)
    references = generator.integers(0, labels, rows)
    predictions = np.where(generator.random(rows) < 0.6, references, generator.integers(0, labels, rows))
    return predictions, references


def multi_data(rows=30, labels=4, seed=2):
    generator = np.random.default_rng(seed)
    references = (generator.random((rows, labels)) < 0.3).astype(int)
    scores = 0.4 * references + 0.6 * generator.random((rows, labels))
    return scores.round(2), references  # rounded, so that scores tie


# ---- single-label ---------------------------------------------------------------------------------------


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


# ---- multi-label ----------------------------------------------------------------------------------------


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


# ---- threshold ------------------------------------------------------------------------------------------


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


# ---- bootstrap ------------------------------------------------------------------------------------------


def test_resamples_are_rows_drawn_with_replacement():
    lines = np.concatenate(list(bootstrap.resample_indices(50, samples=400, seed=3)))
    assert lines.shape == (400, 50)
    assert (lines.min(), lines.max()) == (0, 49)
    # A row is missing from a resample with probability (1 - 1/N)^N.
    missing = np.mean([50 - len(set(line)) for line in lines.tolist()]) / 50
    assert missing == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)
    again = np.concatenate(list(bootstrap.resample_indices(50, samples=400, seed=3)))
    other = np.concatenate(list(bootstrap.resample_indices(50, samples=400, seed=4)))
    assert (lines == again).all()
    assert (lines != other).any()


def test_chunks_add_up_to_the_resamples_asked_for_and_change_nothing(monkeypatch):
    whole = np.concatenate(list(bootstrap.resample_indices(7, samples=23, seed=0)))
    monkeypatch.setattr(bootstrap, "_CHUNK", 35)
    chunks = list(bootstrap.resample_indices(7, samples=23, seed=0))
    assert [len(chunk) for chunk in chunks] == [5, 5, 5, 5, 3]
    assert (np.concatenate(chunks) == whole).all()
    monkeypatch.setattr(bootstrap, "_CHUNK", 3)
    assert (np.concatenate(list(bootstrap.resample_indices(7, samples=23, seed=0))) == whole).all()


@pytest.mark.parametrize("chunk", [2**20, 90])
def test_single_label_intervals_equal_a_loop_over_rows(monkeypatch, chunk):
    monkeypatch.setattr(bootstrap, "_CHUNK", chunk)
    predictions, references = single_data(rows=30, labels=4)
    # Labels far apart, and one that does not occur: the counting must not depend on numbering.
    result = metrics.single_label_metrics(
        predictions * 3, references * 3, [str(i) for i in range(12)], confidence_samples=60, seed=5
    )

    def macro(rows):
        return slow_macro_f1([int(predictions[i]) for i in rows], [int(references[i]) for i in rows])

    assert result["macro_f1_ci95"] == pytest.approx(slow_interval(macro, 30, 60, 5), abs=1e-12)


def mean_interval(values, **options):
    rows = np.asarray(values, dtype=float)
    return bootstrap.bootstrap_interval(lambda indices: rows[indices].mean(axis=1), len(rows), **options)


def test_the_interval_of_accuracy_is_wilsons():
    # The formula as it stands in the paper, with z at 97.5 % of the normal distribution.
    z, hits, rows = 1.959963984540054, 27, 30
    share = hits / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    result = metrics.single_label_metrics([0] * rows, [0] * hits + [1] * 3, ["a", "b"])
    assert result["accuracy_ci95"] == pytest.approx([middle - half, middle + half])
    # Without a single error, 200 rows still leave room for one in fifty.
    low, high = metrics.proportion_interval([True] * 200)
    assert 0.98 < low < 0.9815 and high == pytest.approx(1.0)
    for bad in ([], [0.5], [[1]]):
        with pytest.raises(ValueError, match="hits"):
            metrics.proportion_interval(bad)


@pytest.mark.parametrize("chunk", [2**20, 50])
@pytest.mark.parametrize("labels", [1, 3])
def test_multi_label_intervals_equal_a_loop_over_rows(monkeypatch, chunk, labels):
    monkeypatch.setattr(bootstrap, "_CHUNK", chunk)
    scores, references = multi_data(rows=12, labels=labels)  # so few rows that labels go missing
    names = [str(i) for i in range(labels)]
    result = metrics.multi_label_metrics(scores, references, 0.5, names, confidence_samples=60, seed=6)
    predicted = (scores >= 0.5).astype(int)

    def slow(position):
        def statistic(rows):
            return slow_multi_f1(predicted[rows].tolist(), references[rows].tolist())[position]

        return slow_interval(statistic, 12, 60, 6)

    assert result["micro_f1_ci95"] == pytest.approx(slow(0), abs=1e-12)
    assert result["macro_f1_ci95"] == pytest.approx(slow(1), abs=1e-12)


def test_mean_and_ratio_intervals_equal_a_loop_over_rows():
    generator = np.random.default_rng(7)
    errors, words = generator.integers(0, 6, 20), generator.integers(1, 12, 20)
    mean = mean_interval(errors, samples=80, seed=8)
    ratio = bootstrap.bootstrap_ratio_interval(errors, words, samples=80, seed=8)
    assert list(mean) == pytest.approx(slow_interval(lambda rows: sum(errors[rows]) / 20, 20, 80, 8))
    assert list(ratio) == pytest.approx(slow_interval(lambda rows: sum(errors[rows]) / sum(words[rows]), 20, 80, 8))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(9)
    mean_hits = ratio_hits = 0
    for seed in range(300):
        rows = generator.random(80) < 0.7
        low, high = mean_interval(rows, samples=200, seed=seed)
        mean_hits += low <= 0.7 <= high
        words = generator.integers(5, 20, 80)
        low, high = bootstrap.bootstrap_ratio_interval(generator.binomial(words, 0.2), words, samples=200, seed=seed)
        ratio_hits += low <= 0.2 <= high
    # 300 trials at 0.95 have a standard error of 0.013; the percentile interval runs a little narrow.
    assert 0.90 <= mean_hits / 300 <= 0.985
    assert 0.90 <= ratio_hits / 300 <= 0.985


def test_wider_confidence_gives_a_wider_interval_round_the_point():
    values = np.random.default_rng(10).random(100)
    narrow = mean_interval(values, confidence=0.5)
    wide = mean_interval(values, confidence=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_one_row_collapses_the_interval_to_the_statistic():
    assert mean_interval([0.25]) == (0.25, 0.25)
    assert bootstrap.bootstrap_ratio_interval([1], [4]) == (0.25, 0.25)
    result = metrics.single_label_metrics([1], [1], ["a", "b"])
    assert result["macro_f1_ci95"] == [1.0, 1.0]


def test_resamples_without_a_denominator_are_left_out():
    # A quarter of the resamples draw the second row twice; of the others every one has the ratio 1/2.
    assert bootstrap.bootstrap_ratio_interval([1, 0], [2, 0]) == (0.5, 0.5)


def test_the_seed_decides():
    predictions, references = single_data()
    names = list("abcde")
    first = metrics.single_label_metrics(predictions, references, names, seed=1)
    assert metrics.single_label_metrics(predictions, references, names, seed=1) == first
    other = metrics.single_label_metrics(predictions, references, names, seed=2)
    assert other["macro_f1_ci95"] != first["macro_f1_ci95"]
    assert other["macro_f1"] == first["macro_f1"]


def test_numpy_global_random_state_is_neither_used_nor_changed():
    predictions, references = single_data()
    np.random.seed(11)
    state = np.random.get_state()[1].copy()
    first = metrics.single_label_metrics(predictions, references, list("abcde"))
    metric = metrics.Accuracy()
    metric.add_batch(predictions=predictions, references=references)
    metric.compute()
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(12)
    assert metrics.single_label_metrics(predictions, references, list("abcde")) == first


def test_no_resamples_leaves_the_intervals_out():
    predictions, references = single_data()
    with_intervals = metrics.single_label_metrics(predictions, references, list("abcde"), confidence_samples=3)
    without = metrics.single_label_metrics(predictions, references, list("abcde"), confidence_samples=0)
    assert set(with_intervals) - set(without) == {"accuracy_ci95", "macro_f1_ci95"}
    scores, truth = multi_data()
    without = metrics.multi_label_metrics(scores, truth, 0.5, list("abcd"), confidence_samples=0)
    assert not [key for key in without if key.endswith("_ci95")]


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="at least 1 row"):
        bootstrap.bootstrap_interval(lambda rows: rows.mean(axis=1), 0)
    with pytest.raises(ValueError, match="at least 1 resample"):
        mean_interval([1.0], samples=0)
    with pytest.raises(ValueError, match="confidence must be inside"):
        mean_interval([1.0], confidence=95)
    with pytest.raises(ValueError, match="must return"):
        bootstrap.bootstrap_interval(lambda rows: rows.mean(), 3)
    with pytest.raises(ValueError, match="undefined"):
        bootstrap.bootstrap_interval(lambda rows: np.full(len(rows), np.nan), 3)
    for bad in ([], [[1.0]], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="numerators must be"):
            bootstrap.bootstrap_ratio_interval(bad, [1.0])
    with pytest.raises(ValueError, match="2 numerators but 1 denominators"):
        bootstrap.bootstrap_ratio_interval([1, 2], [1])
    for bad in ([0, 0], [1, -1]):
        with pytest.raises(ValueError, match="denominators must be >= 0"):
            bootstrap.bootstrap_ratio_interval([1, 1], bad)


# ---- validation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", SINGLE)
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "N >= 1"),
        (None, None, "N >= 1"),
        ([0], None, "references must be"),
        ([0, 1], [0], "same shape"),
        ([[0, 1]], [[0, 1]], "N >= 1"),
        ([0.5], [0], "integer label indices, got float64"),
        (["a"], ["a"], "integer label indices"),
        ([True], [True], "integer label indices"),
        ([0], [-100], "label indices >= 0, got -100"),
    ],
)
def test_single_label_input_is_checked(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=message):
        metric().add_batch(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=message):
        metrics.single_label_metrics(predictions, references, ["a", "b"])


def test_label_indices_beyond_the_labels_are_refused():
    message = r"predictions must be label indices in \[0, 2\), got 2"
    with pytest.raises(ValueError, match=message):
        metrics.single_label_metrics([0, 2], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match=message):
        metrics.ConfusionMatrix().compute(predictions=[2], references=[0], num_labels=2)
    with pytest.raises(ValueError, match=message):
        metrics.PerClass().compute(predictions=[2], references=[0], label_names=["a", "b"])


@pytest.mark.parametrize(
    ("scores", "references", "message"),
    [
        ([], [], "N >= 1 and C >= 1"),
        ([0.5, 0.5], [0, 1], "N, C"),
        ([[0.5, 0.5]], [[1]], "same shape"),
        ([[0.5]], [[2]], "0 or 1"),
        ([[0.5]], [[-100]], "0 or 1"),
        ([[float("nan")]], [[1]], "finite"),
    ],
)
def test_multi_label_input_is_checked(scores, references, message):
    for metric in MULTI:
        with pytest.raises(ValueError, match="0 or 1|" + message):
            metric().compute(predictions=scores, references=references)
        with pytest.raises(ValueError, match="0 or 1|" + message):
            metric().add_batch(predictions=scores, references=references)
    with pytest.raises(ValueError, match=message):
        metrics.multi_label_metrics(scores, references, 0.5, ["a"])
    with pytest.raises(ValueError, match=message):
        metrics.choose_threshold(scores, references)


def test_scores_thresholds_and_names_are_checked():
    with pytest.raises(ValueError, match="1 label columns but 2 label names"):
        metrics.multi_label_metrics([[0.5]], [[1]], 0.5, ["a", "b"])
    for threshold in (0.0, 1.0, -1, 50, float("nan")):
        with pytest.raises(ValueError, match="threshold must be inside"):
            metrics.multi_label_metrics([[0.5]], [[1]], threshold, ["a"])
    for logit in (-0.1, 3.0):
        with pytest.raises(ValueError, match="probabilities in"):
            metrics.multi_label_metrics([[logit]], [[1]], 0.5, ["a"])
        with pytest.raises(ValueError, match="probabilities in"):
            metrics.choose_threshold([[logit]], [[1]])
    with pytest.raises(ValueError, match="metric must be"):
        metrics.choose_threshold([[0.5]], [[1]], "map")
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.MultiLabelF1().compute(predictions=[[0.7]], references=[[1]])


# ---- evaluate's own interface ---------------------------------------------------------------------------


def test_every_metric_is_an_evaluate_metric():
    for metric in [kind() for kind in SINGLE + MULTI]:
        assert isinstance(metric, evaluate.Metric)
        assert metric.description == type(metric).__doc__
        assert set(metric.features) == {"predictions", "references"}
    assert metrics.MacroF1().name == "macro_f1"


def test_batches_and_single_examples_add_up():
    predictions, references = single_data()
    metric = metrics.MacroF1()
    metric.add_batch(predictions=predictions[:10], references=references[:10])
    metric.add_batch(predictions=predictions[10:39].tolist(), references=references[10:39].tolist())
    metric.add(prediction=predictions[39], reference=references[39])
    assert metric.compute() == metrics.MacroF1().compute(predictions=predictions, references=references)


def test_compute_takes_what_was_added_and_starts_afresh_afterwards():
    metric = metrics.Accuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    assert metric.compute(predictions=[1, 1], references=[1, 1]) == {"accuracy": 0.75}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}
    metric.add(prediction=0, reference=1)
    assert metric.compute() == {"accuracy": 0.0}
    with pytest.raises(ValueError, match="N >= 1"):
        metric.compute()


def test_a_refused_batch_leaves_no_trace():
    metric = metrics.Accuracy()
    metric.add_batch(predictions=[0], references=[0])
    with pytest.raises(ValueError, match="same shape"):
        metric.add_batch(predictions=[0, 0, 0], references=[1])
    assert metric.compute() == {"accuracy": 1.0}


@pytest.mark.parametrize("metric", MULTI)
def test_multi_label_batches_add_up(metric):
    scores, references = multi_data()
    predictions = scores if metric is metrics.MeanAveragePrecision else (scores >= 0.5).astype(int)
    batched = metric()
    batched.add_batch(predictions=predictions[:20], references=references[:20])
    batched.add_batch(predictions=predictions[20:], references=references[20:])
    assert batched.compute() == metric().compute(predictions=predictions, references=references)
    batched.add_batch(predictions=predictions, references=references)
    batched.add_batch(predictions=[[1]], references=[[1]])
    with pytest.raises(ValueError):
        batched.compute()  # batches of different width
    assert batched.compute(predictions=[[1]], references=[[1]]) == metric().compute(predictions=[[1]], references=[[1]])


def test_arguments_reach_a_metric_that_was_given_batches():
    matrix, rows = metrics.ConfusionMatrix(), metrics.PerClass()
    matrix.add_batch(predictions=[0, 1], references=[1, 1])
    rows.add_batch(predictions=[0, 1], references=[1, 1])
    assert matrix.compute(num_labels=2) == {"confusion_matrix": [[0, 0], [1, 1]]}
    assert [row["label"] for row in rows.compute(label_names=["a", "b"])["per_class"]] == ["a", "b"]


def test_metrics_combine():
    both = evaluate.combine([metrics.Accuracy(), metrics.MacroF1()])
    both.add_batch(predictions=[0, 1], references=[0, 1])
    assert both.compute() == {"accuracy": 1.0, "macro_f1": 1.0}


def test_results_are_plain_python():
    predictions, references = single_data()
    scores, truth = multi_data()
    single = metrics.single_label_metrics(predictions, references, list("abcde"))
    multi = metrics.multi_label_metrics(scores, truth, np.float32(0.5), list("abcd"))
    for result in (single, multi):
        assert json.loads(json.dumps(result)) == result
        assert not [value for value in _leaves(result) if type(value) not in (int, float, str)]
        for key in ("accuracy", "macro_f1", "micro_f1"):
            if key in result:
                low, high = result[f"{key}_ci95"]
                assert 0.0 <= low <= result[key] <= high <= 1.0


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


# The whole life of every metric in a process of its own, whose home is an empty folder and whose sockets and
# writes are watched: an import or a constructor that writes would otherwise have done so long ago.
WATCHED = """
import os, sys
written = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"network: {event} {arguments}")
    if armed and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(arguments[0])
    if armed and event in ("os.mkdir", "os.rename"):
        written.append(arguments[0])
armed = False
sys.addaudithook(watch)
from sft_hf import metrics
armed = True
for kind in (metrics.Accuracy, metrics.MacroF1):
    metric = kind()
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add(prediction=0, reference=1)
    metric.compute()
for kind in (metrics.MultiLabelF1, metrics.MeanAveragePrecision):
    metric = kind()
    metric.add_batch(predictions=[[0, 1]], references=[[1, 1]])
    metric.compute()
metrics.single_label_metrics([0, 1], [1, 1], ["a", "b"])
metrics.multi_label_metrics([[0.1, 0.9]], [[1, 1]], 0.5, ["a", "b"])
armed = False
print("written:", [path for path in written if path != os.devnull])
"""


def test_nothing_is_written_and_no_connection_is_tried(tmp_path):
    root = Path(metrics.__file__).parents[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "PYTHON"))}
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path)}
    environment = kept | home | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "written: []"), done.stderr
    assert list(tmp_path.rglob("*")) == []
    assert "Warning" not in done.stderr
