"""Paired tests against formulas and loops written by hand."""

from __future__ import annotations

from itertools import pairwise
from math import comb

import numpy as np
import pytest

from sft_hf.tasks.scoring.intervals import resample_indices
from sft_hf.tasks.scoring.paired import BOOTSTRAP, MCNEMAR, holm, mcnemar, paired_difference


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (1, 5), (5, 1), (9, 9), (0, 30), (12, 21)])
def test_mcnemar_is_a_coin_toss_of_the_rows_that_one_gets_right(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True] * 7 + [False] * 3)
    second = np.array([False] * only_first + [True] * only_second + [True] * 7 + [False] * 3)
    tosses = only_first + only_second
    tail = sum(comb(tosses, heads) for heads in range(min(only_first, only_second) + 1)) / 2**tosses
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(first, first) == 1


def test_holm():
    """Against the definition: the k-th smallest of n is multiplied by n - k + 1, and none is below a smaller one."""
    values = [0.03, 0.001, 0.5, 0.02, 0.02]
    ordered = sorted(values)
    wanted = [
        max(min(1, (len(values) - k) * ordered[k]) for k in range(ordered.index(value) + ordered.count(value)))
        for value in values
    ]
    assert holm(values) == pytest.approx(wanted)
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1, 1]


def answers(seed, rows=60):
    """Labels, and two models of which the second is somewhat worse."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(["a", "b", "c"], rows)
    first, second = (np.where(generator.random(rows) < part, "a", truth) for part in (0.1, 0.4))
    return truth.tolist(), first.tolist(), second.tolist()


@pytest.mark.parametrize("seed", [1, 2])
def test_accuracy(seed):
    truth, first, second = answers(seed)
    found = paired_difference("accuracy", truth, first, second)
    one, other = (np.array(given) == np.array(truth) for given in (first, second))
    assert (found.first, found.second) == (one.mean(), other.mean()) and found.value == one.mean() - other.mean()
    assert found.p_value == mcnemar(one, other) and found.test == MCNEMAR and found.rows == 60
    drawn = np.concatenate(
        [(one[rows] * 1.0 - other[rows]).mean(axis=1) for rows in resample_indices(60, samples=10_000)]
    )
    assert found.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    back = paired_difference("accuracy", truth, second, first)
    assert back.value == -found.value and back.p_value == found.p_value


def test_f1_of_one_label_and_of_several():
    from sklearn.metrics import f1_score

    truth, first, second = answers(3)
    found = paired_difference("macro_f1", truth, first, second)
    assert found.first == pytest.approx(f1_score(truth, first, average="macro"))
    sets = [[set(pair) for pair in pairwise(given)] for given in (truth, first, second)]
    found = paired_difference("micro_f1", *[[sorted(labels) for labels in rows] for rows in sets])
    indicators = [np.array([[name in labels for name in "abc"] for labels in rows]) for rows in sets]
    assert found.first == pytest.approx(f1_score(indicators[0], indicators[1], average="micro"))
    assert found.second == pytest.approx(f1_score(indicators[0], indicators[2], average="micro"))
    drawn = [
        f1_score(indicators[0][rows], indicators[1][rows], average="micro")
        - f1_score(indicators[0][rows], indicators[2][rows], average="micro")
        for rows in next(iter(resample_indices(59, samples=10_000)))[:200]
    ]
    assert found.value == pytest.approx(found.first - found.second) and found.test == BOOTSTRAP
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high), abs=0.04)


def test_word_errors():
    pytest.importorskip("jiwer")
    truth = ["one two three four", "five six", "seven"] * 10
    first = ["one two three", "five six", "seven"] * 10
    second = ["one two", "six five", "seven eight"] * 10
    found = paired_difference("wer", truth, first, second)
    assert (found.first, found.second) == pytest.approx((1 / 7, (2 + 2 + 1) / 7))
    assert found.interval[1] < 0 and found.p_value == pytest.approx(2 / 10_001)
    same = paired_difference("wer", truth, first, first)
    assert (same.value, same.interval, same.p_value) == (0, (0, 0), 1)


@pytest.mark.parametrize(
    ("metric", "wanted"), [("mse", (0.5, 3.125)), ("mae", (0.5, 1.75)), ("rmse", (0.5**0.5, 3.125**0.5))]
)
def test_numbers(metric, wanted):
    found = paired_difference(metric, [1.0, 2.0] * 8, [1.0, 3.0] * 8, [2.5, 4.0] * 8)  # errors 0 and 1, 1.5 and 2
    assert (found.first, found.second) == pytest.approx(wanted)
    several = paired_difference(metric, [[1.0, 1.0]] * 4, [[1.0, 2.0]] * 4, [[3.0, 1.0]] * 4)
    assert several.first == pytest.approx(0.5) and several.second > several.first  # the mean over both targets


def test_what_cannot_be_compared():
    assert paired_difference("map", ["a"], ["a"], ["b"]) is None
    assert paired_difference("accuracy", [], [], []) is None
    with pytest.raises(ValueError, match="2 references, 1 and 2"):
        paired_difference("accuracy", ["a", "b"], ["a"], ["a", "b"])


def test_two_models_that_are_equally_often_right_do_not_differ():
    found = paired_difference("accuracy", ["x"] * 40, ["x", "y"] * 20, ["y", "x"] * 20)
    assert found.value == 0 and found.p_value == 1 and found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize(("rows", "least"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_few_rows_prove_nothing(rows, least):
    """The smallest p value that any test of so few pairs can give: that of all signs flipped."""
    references = ["one two three"] * rows
    found = paired_difference("wer", references, ["nothing of it at all"] * rows, references)
    assert found.value > 0
    assert found.p_value == pytest.approx(least)
