"""The expected calibration error, against a reference written row by row."""

from __future__ import annotations

import numpy as np
import pytest

from sft_hf.tasks.scoring.confidence import calibration_metrics


def reference(confidences, correct, bins):
    """As Guo et al. write it: B_m holds the rows whose confidence lies in ((m - 1) / M, m / M]."""
    error = 0.0
    for m in range(1, bins + 1):
        low, high = (m - 1) / bins, m / bins
        rows = [i for i, value in enumerate(confidences) if low < value <= high or (m == 1 and value == 0)]
        if rows:
            accuracy = sum(correct[i] for i in rows) / len(rows)
            confidence = sum(confidences[i] for i in rows) / len(rows)
            error += len(rows) / len(confidences) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_it_is_what_the_paper_says(seed, bins):
    generator = np.random.default_rng(seed)
    confidences = generator.random(200)
    correct = generator.random(200) < confidences**2
    found = calibration_metrics(confidences, correct, bins=bins)
    assert found["ece"] == pytest.approx(reference(confidences, correct, bins), abs=1e-12)
    assert sum(row["count"] for row in found["calibration"]) == 200
    for row in found["calibration"]:
        assert row["low"] < row["confidence"] <= row["high"]


def test_ends_and_edges_of_bins():
    found = calibration_metrics([0.0, 0.5, 1.0, 1.0 + 1e-7], [False, True, True, False], bins=2)
    assert [(row["low"], row["high"], row["count"]) for row in found["calibration"]] == [(0.0, 0.5, 2), (0.5, 1.0, 2)]


def test_a_calibrated_model_has_no_error_and_a_sure_one_that_is_wrong_has_all():
    assert calibration_metrics([0.75] * 4, [True, True, True, False])["ece"] == 0
    assert calibration_metrics([1.0] * 4, [False] * 4)["ece"] == 1


@pytest.mark.parametrize("values", [([], []), ([0.5], []), ([1.5], [True]), ([float("nan")], [True])])
def test_errors(values):
    with pytest.raises(ValueError):
        calibration_metrics(*values)
