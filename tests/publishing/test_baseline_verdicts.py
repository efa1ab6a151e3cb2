"""The verdict on a baseline, the same in log, card and report."""

from __future__ import annotations

import pytest

from sft_hf.publishing.baselines import compared, read_baseline, verdict


def baseline(model: float, value: float, p_value: float, metric: str = "accuracy"):
    difference = {"value": model - value, "ci95": [model - value - 0.1, model - value + 0.1], "p_value": p_value}
    entry = {"name": "tf-idf", "metrics": {metric: value}, "model": {metric: model}, "difference": difference}
    return read_baseline(entry, metric, {})


@pytest.mark.parametrize(
    ("metric", "difference", "p_value", "expected"),
    [
        ("accuracy", 0.2, 0.01, "clearly better"),
        ("accuracy", -0.2, 0.01, "clearly worse"),
        ("wer", 0.2, 0.01, "clearly worse"),
        ("accuracy", -0.125, 0.69, "not clearly different"),
        ("accuracy", 0.0, 1.0, "not clearly different"),
    ],
)
def test_the_paired_test_decides(metric, difference, p_value, expected):
    assert verdict(metric, difference, p_value) == expected
    assert f"The model is {expected}: " in compared(baseline(0.5 + difference, 0.5, p_value, metric), None)


def test_a_difference_that_may_be_chance_is_said_to_be():
    worse = baseline(0.625, 0.75, 0.69)
    for text in (worse.if_worse(None), compared(worse, None)):
        assert "not clearly different" in text and "12.5 points worse" in text and "may be chance" in text
        assert "p = 0.69" in text and "clearly worse" not in text
    same = compared(baseline(0.5, 0.5, 1.0), None)
    assert "the same score" in same and "points" not in same and baseline(0.5, 0.5, 1.0).if_worse(None) is None
