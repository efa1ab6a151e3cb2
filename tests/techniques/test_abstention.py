"""Abstention: the bound, the threshold, and what predictions and metrics tell."""

from __future__ import annotations

import json
import logging
from math import comb

import numpy as np
import pytest
from small_runs import briefly

from sft_hf.core.errors import RecipeError
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.run import predict_files
from sft_hf.techniques.confidence.abstention import choose_abstention, upper_bound


def test_at_the_bound_so_few_errors_are_as_unlikely_as_the_level_says():
    for errors, answered, level in ((0, 10, 0.95), (1, 30, 0.9), (7, 40, 0.95), (3, 4, 0.8)):
        p = float(upper_bound(np.array([errors]), np.array([answered]), level)[0])
        chance = sum(comb(answered, k) * p**k * (1 - p) ** (answered - k) for k in range(errors + 1))
        assert chance == pytest.approx(1 - level)
    assert upper_bound(np.array([5]), np.array([5]), 0.95)[0] == 1
    assert upper_bound(np.array([0]), np.array([20]), 0.95)[0] == pytest.approx(1 - 0.05 ** (1 / 20))


def by_trying_all(confidences, correct, error_rate, level):
    """Every confidence as the threshold, from below; 0 where all rows may be answered."""
    for threshold in sorted(set(confidences.tolist())):
        answered = confidences >= threshold
        errors = int((answered & ~correct).sum())
        count = int(answered.sum())
        rate = errors / count if level is None else upper_bound(np.array([errors]), np.array([count]), level)[0]
        if rate <= error_rate:
            return 0.0 if answered.all() else threshold
    return None


@pytest.mark.parametrize("level", [None, 0.95])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_lowest_threshold(seed, level):
    generator = np.random.default_rng(seed)
    confidences = generator.integers(0, 40, 120) / 40  # with equal ones
    correct = generator.random(120) < 0.6 + 0.4 * confidences
    for error_rate in (0.0, 0.05, 0.15, 0.5):
        expected = by_trying_all(confidences, correct, error_rate, level)
        assert choose_abstention(confidences, correct, error_rate, level) == expected


def test_the_bound_is_more_careful_and_too_few_rows_prove_nothing():
    confidences, correct = np.linspace(0.5, 1, 20), np.ones(20, dtype=bool)
    assert choose_abstention(confidences, correct, 0.05, None) == 0
    assert choose_abstention(confidences, correct, 0.05, 0.95) is None  # 0 of 20 wrong: up to 14 %
    assert choose_abstention(confidences, correct, 0.15, 0.95) == 0


SHORT = {
    "eval__baseline": "none",
    "train__max_steps": 4,
    "data__validation_fraction": 0.3,
    "optim__learning_rate": 3e-3,
}


def check(run, error_rate):
    """Metrics, predictions and config say one thing."""
    told = run.metrics["techniques"]["abstention"]
    config = json.loads((run.output_dir / "model" / "config.json").read_text())
    rows = [json.loads(line) for line in (run.output_dir / "predictions.jsonl").read_text().splitlines()]
    assert [row["abstain"] for row in rows] == [row["confidence"] < config["abstention_threshold"] for row in rows]
    answered = [row for row in rows if not row["abstain"]]
    test = run.metrics["test"]
    assert test["coverage"] == pytest.approx(len(answered) / len(rows))
    wrong = [row["prediction"] != row["reference"] for row in answered]
    assert test["selective_error"] == (pytest.approx(np.mean(wrong)) if wrong else None)
    assert run.metrics["validation"]["coverage"] == told["coverage"]
    assert told["selective_error"] is None or told["selective_error"] <= error_rate
    return told, config


def test_predictions_say_where_not_to_rely_on_them(make_recipe):
    techniques = [{"name": "abstention", "error_rate": 0.2, "bound": "plain"}, {"name": "temperature_scaling"}]
    run = briefly(make_recipe(techniques=techniques, **SHORT))
    told, config = check(run, 0.2)
    assert 0 < told["coverage"] < 1
    assert config["abstention_threshold"] == told["threshold"]
    # chosen on the confidence that the temperature has scaled, which is what predictions tell
    rows = list(predict_files(run.output_dir, ["goal match", "bank rate", "the"]))
    assert all(row["abstain"] == (row["confidence"] < told["threshold"]) for row in rows)
    again = evaluate_run(run.output_dir)
    assert again["coverage"] == pytest.approx(run.metrics["test"]["coverage"], abs=0.05)


def test_where_no_threshold_keeps_the_promise_nothing_is_answered(make_recipe, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    run = briefly(make_recipe(techniques=[{"name": "abstention", "error_rate": 0.0}], **SHORT))
    told, _ = check(run, 0.0)
    assert told["threshold"] is None and told["coverage"] == 0
    assert "the model abstains from all answers" in caplog.text


def test_transcripts_and_several_labels(make_speech_recipe, make_recipe, tmp_path):
    technique = [{"name": "abstention", "error_rate": 0.5, "bound": "plain"}]
    run = briefly(make_speech_recipe(techniques=technique, train__max_steps=2, eval__baseline="none"))
    check(run, 0.5)
    for name, count in (("train", 40), ("test", 12)):
        rows = [
            {"text": f"{'goal' if i % 2 else 'bank'} the a", "label": [["x"], ["y"], ["x", "y"]][i % 3]}
            for i in range(count)
        ]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = [*technique, {"name": "temperature_scaling"}]
    options = {"data__name": str(tmp_path / "data"), "output_dir": str(tmp_path / "several")}
    several = briefly(make_recipe(techniques=both, **SHORT, **options))
    rows = [json.loads(line) for line in (several.output_dir / "predictions.jsonl").read_text().splitlines()]
    assert several.metrics["test"]["coverage"] == np.mean([not row["abstain"] for row in rows])
    assert several.metrics["techniques"]["temperature_scaling"]["temperature"] > 0


def test_without_validation_it_is_refused(make_recipe):
    with pytest.raises(RecipeError, match="abstention needs a validation split to choose on"):
        briefly(make_recipe(techniques=[{"name": "abstention"}], data__validation_fraction=0))
