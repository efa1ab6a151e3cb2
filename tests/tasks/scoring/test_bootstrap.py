"""Confidence intervals of metrics, against loops over rows and the formulas as they stand in papers."""

from __future__ import annotations

import numpy as np
import pytest
from slow_metrics import multi_data, single_data, slow_interval, slow_macro_f1, slow_multi_f1

from sft_hf.tasks.scoring import classification as metrics
from sft_hf.tasks.scoring import intervals as bootstrap


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
