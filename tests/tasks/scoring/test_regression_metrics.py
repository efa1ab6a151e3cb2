"""Metrics of regression, against scikit-learn and SciPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from sft_hf.tasks.scoring.intervals import resample_indices
from sft_hf.tasks.scoring.regression import METRICS, regression_metrics

EXPECTED = {
    "mse": sklearn_metrics.mean_squared_error,
    "rmse": sklearn_metrics.root_mean_squared_error,
    "mae": sklearn_metrics.mean_absolute_error,
    "r2": sklearn_metrics.r2_score,
    "pearson": lambda truth, predicted: stats.pearsonr(truth, predicted).statistic,
    "spearman": lambda truth, predicted: stats.spearmanr(truth, predicted).statistic,
}


def made(rows, targets=1, seed=0, ties=False):
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(rows, targets)) * 3 + 1000
    predicted = truth + generator.normal(size=(rows, targets))
    return (np.round(predicted), np.round(truth)) if ties else (predicted, truth)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rows", [2, 3, 50, 400])
def test_values_are_those_of_scipy_and_scikit_learn(rows, ties):
    predicted, truth = made(rows, ties=ties, seed=3)
    found = regression_metrics(predicted, truth, ["y"], [3.0], confidence_samples=0)
    for name, expected in EXPECTED.items():
        assert found[name] == pytest.approx(expected(truth[:, 0], predicted[:, 0]), rel=1e-9)
    assert not any(name.endswith("_ci95") for name in found) and "per_target" not in found


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_are_the_bootstrap_of_these_values(ties):
    predicted, truth = made(40, ties=ties)
    found = regression_metrics(predicted, truth, ["y"], [3.0], confidence_samples=200, seed=5)
    for name, expected in EXPECTED.items():
        values = [
            expected(truth[line, 0], predicted[line, 0])
            for indices in resample_indices(40, samples=200, seed=5)
            for line in indices
        ]
        assert found[f"{name}_ci95"] == pytest.approx(np.quantile(values, [0.025, 0.975]), rel=1e-6)


def test_several_targets_are_scored_apart_and_on_average():
    predicted, truth = made(60, targets=3)
    found = regression_metrics(predicted, truth, ["a", "b", "c"], [1.0, 2.0, 4.0], confidence_samples=50)
    assert [entry["target"] for entry in found["per_target"]] == ["a", "b", "c"]
    for name in METRICS:
        each = [entry[name] for entry in found["per_target"]]
        alone = regression_metrics(predicted[:, 1:2], truth[:, 1:2], ["b"], [2.0], confidence_samples=50)
        assert found[name] == pytest.approx(np.mean(each)) and each[1] == pytest.approx(alone[name])
        assert found["per_target"][1][f"{name}_ci95"] == pytest.approx(alone[f"{name}_ci95"])
    expected = np.sqrt((((predicted - truth) / [1.0, 2.0, 4.0]) ** 2).mean())
    assert found["standardized_rmse"] == pytest.approx(expected)
    assert found["standardized_rmse_ci95"][0] < expected < found["standardized_rmse_ci95"][1]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -3e-9])
def test_a_constant_answer_has_no_correlation(value):
    truth = np.arange(7.0)[:, None]
    found = regression_metrics(np.full((7, 1), value), truth, ["y"], [1.0])
    assert found["pearson"] is None and found["spearman"] is None and "pearson_ci95" not in found
    assert found["rmse"] > 0 and found["r2"] <= 0
    json.dumps(found, allow_nan=False)


def test_references_that_are_all_the_same_have_no_r2():
    found = regression_metrics([[1.0], [2.0]], [[0.1], [0.1]], ["y"], [1.0])
    assert (found["r2"], found["pearson"], found["spearman"]) == (None, None, None) and found["mae"] == 1.4


def test_an_undefined_target_is_left_out_of_the_mean():
    truth = np.stack([np.arange(5.0), np.full(5, 2.0)], axis=1)
    found = regression_metrics(truth * 1.0, truth, ["a", "b"], [1.0, 1.0], confidence_samples=20)
    assert found["pearson"] == 1.0 and found["per_target"][1]["pearson"] is None


def test_one_row():
    found = regression_metrics([[2.0]], [[5.0]], ["y"], [1.0])
    assert found["rmse"] == 3.0 and found["rmse_ci95"] == [3.0, 3.0] and found["spearman"] is None


def test_predictions_that_are_no_numbers_leave_everything_undefined():
    found = regression_metrics([[np.nan], [1.0]], [[1.0], [2.0]], ["y"], [1.0], confidence_samples=10)
    assert all(found[name] is None for name in METRICS)


@pytest.mark.parametrize(
    ("predicted", "truth"), [([[1.0]], [[1.0], [2.0]]), ([1.0], [1.0]), ([[1.0]], [[np.inf]]), (np.zeros((0, 1)),) * 2]
)
def test_shapes_and_references_are_checked(predicted, truth):
    with pytest.raises(ValueError, match="references"):
        regression_metrics(predicted, truth, ["y"], [1.0])
