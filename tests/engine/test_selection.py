"""Which evaluation's weights are kept: a better metric, then a lower loss, then the later step."""

from __future__ import annotations

import json
import math

import pytest
from small_runs import briefly, interrupted_and_resumed

from sft_hf.engine import selection
from sft_hf.engine.state import TrainState
from sft_hf.tasks.classification_scorer import ClassificationScorer


def chosen(evaluations, lower=False):
    """(step, patience used) after evaluations of a metric and a loss."""
    state = TrainState()
    for step, (value, loss) in enumerate(evaluations, start=1):
        state.step = step
        selection.choose(state, value, loss, lower=lower)
        state = TrainState.from_json(json.loads(json.dumps(state.to_json())))
    return state.best_step, state.evaluations_without_improvement


@pytest.mark.parametrize(
    ("evaluations", "lower", "expected"),
    [
        ([(0.9, 0.5), (1.0, 0.4), (1.0, 0.2), (1.0, 0.3)], False, (3, 2)),
        ([(1.0, 0.3), (1.0, 0.3)], False, (2, 1)),  # the later of equals
        ([(0.9, 0.1), (0.8, 0.01), (0.95, 9.0)], False, (3, 0)),  # the metric goes before the loss
        ([(0.2, 0.2), (0.2, 0.2), (0.3, 0.3)], True, (2, 2)),  # chosen by the loss itself
        ([(0.5, 1.0), (0.4, 2.0), (0.4, 1.5)], True, (3, 1)),
        ([(math.nan, 1.0), (0.1, 2.0), (math.nan, 0.1)], False, (2, 1)),  # undefined is worse than any number
        ([(None, 1.0), (None, 2.0), (0.0, 3.0)], False, (3, 0)),
    ],
)
def test_the_best_evaluation(evaluations, lower, expected):
    assert chosen(evaluations, lower) == expected


def test_a_checkpoint_of_an_earlier_version_is_resumed():
    data = TrainState(best_metric=1.0, best_step=3).to_json()
    del data["best_loss"]
    for new, old in {
        "step_in_epoch": "window",
        "oom_splits": "halvings",
        "frozen_features": "prefix_cached",
    }.items():
        data[old] = data.pop(new)
    data["halvings"] = 2
    state = TrainState.from_json(data)
    assert state.oom_splits == 2
    state.step = 5
    assert selection.choose(state, 1.0, 0.7, lower=False) and state.best_loss == 0.7


def test_a_resumed_run_breaks_ties_as_if_it_had_not_stopped(make_recipe, monkeypatch, tmp_path):
    plain = ClassificationScorer.score
    losses = {2: 0.3, 4: 0.2, 6: 0.25, 8: 0.9}  # the best is of the step before the interruption
    evaluated = []

    def score(self, outputs, examples, confidence_samples=0):
        metrics = plain(self, outputs, examples, confidence_samples)
        if confidence_samples:
            return metrics
        evaluated.append(1)
        return {**metrics, "accuracy": 0.5, "loss": losses[2 * len(evaluated)]}

    monkeypatch.setattr(ClassificationScorer, "score", score)
    settings = {"train__max_steps": 8, "eval__eval_steps": 2, "checkpoint__save_steps": 1}
    whole = briefly(make_recipe(**settings, output_dir=str(tmp_path / "whole")))
    evaluated.clear()
    resumed = interrupted_and_resumed(make_recipe(**settings, output_dir=str(tmp_path / "resumed")), stop_at=5)
    assert whole.metrics["train"]["best_step"] == resumed.metrics["train"]["best_step"] == 4


@pytest.mark.parametrize(
    ("rows", "words"), [(30, ["30 rows", "3.3 points", "11 points"]), (60, ["60 rows", "1.7 points"])]
)
def test_a_small_validation_set_says_how_little_it_tells(rows, words):
    (finding,) = selection.small_validation(rows)
    assert finding.level == "note" and all(word in finding.text for word in words)


def test_a_large_validation_set_says_nothing():
    assert selection.small_validation(500) == selection.small_validation(0) == []
