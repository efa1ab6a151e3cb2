"""Cards, reports and comparisons of runs that predict numbers, made in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from publishing.report.report_records import Page, common, overview, recipe, training_log

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.baselines import CLEARLY_WORSE, NOT_CLEAR
from sft_hf.publishing.card.model_card import build_card
from sft_hf.publishing.report.comparison import build_comparison
from sft_hf.publishing.report.regression import _histogram
from sft_hf.publishing.report.run_report import build_report, worst_errors
from sft_hf.tasks.base import Preview
from sft_hf.tasks.scoring.regression import regression_metrics

TEXT, IMAGE = "text-classification", "image-classification"


def record(names=("score",), rows=60, task="text_classification", noise=0.3, **changes):
    """A run that is off by about `noise`, and in row 7 by much more; targets have other units."""
    generator = np.random.default_rng(0)
    units = 100.0 ** np.arange(len(names))
    truth = generator.uniform(0, 5, (rows, len(names)))
    predicted = truth + generator.normal(0, noise, truth.shape)
    predicted[7] = truth[7] + 4
    truth, predicted = truth * units, predicted * units
    scores = {"loss": 0.2, **regression_metrics(predicted, truth, names, units, confidence_samples=50)}
    base = regression_metrics(np.full_like(truth, 2.5) * units, truth, names, units, confidence_samples=50)
    primary = "rmse" if len(names) == 1 else "standardized_rmse"
    metrics = common(primary) | {"task": task, "test": scores, "validation": scores}
    metrics["baseline"] = {
        "name": "mean of train",
        "description": "always answering 2.5, the mean of train",
        "split": "test",
        "metrics": {key: base[key] for key in (primary, f"{primary}_ci95")},
    }
    metrics["data"] = overview(None, "tokens")
    spread = {"min": 0.0, "mean": 2.5, "max": 5.0, "standard_deviation": 1.4}
    metrics["data"]["splits"] = {
        role: {**split, "targets": dict.fromkeys(names, spread)} for role, split in metrics["data"]["splits"].items()
    }
    predictions = [
        {"id": index, "reference": _told(names, truth[index]), "prediction": _told(names, predicted[index])}
        for index in range(rows)
    ]
    made = recipe(task)
    made = made.model_copy(update={"task": made.task.model_copy(update={"problem_type": "regression"})})
    return replace(RunRecord("stars", made, metrics, predictions, training_log(primary)), **changes)


def _told(names, values):
    numbers = values.tolist()
    return numbers[0] if len(names) == 1 else dict(zip(names, numbers, strict=True))


def text_of(html):
    return " ".join(" ".join(text for _, text in Page(html).texts).split())


@pytest.mark.parametrize("names", [("score",), ("score", "length")])
def test_a_report_shows_numbers(names):
    run = record(names)
    html = build_report(run, {7: Preview("the row that is off most")})
    said = text_of(html)
    for words in ("RMSE", "Spearman", "Mean of train", "The largest errors", "Off by", "the row that is off most"):
        assert words in said
    for words in ("Confidence", "confidence", "Confusion", "F1", "%."):
        assert words not in said.replace("95 %", "")
    page = Page(html)
    assert html.count('class="ideal"') == len(names)
    assert sum(1 for tag, attrs in page.elements if tag == "circle" and attrs.get("r") == "3") >= 60 * len(names)
    assert worst_errors(run)[0] == 7
    assert ("Targets" in said) and "nan" not in said.lower().split()


def test_each_target_has_its_own_figures():
    said = text_of(build_report(record(("score", "length")), {}))
    assert "Predictions of score" in said and "Predictions of length" in said and "standard deviations" in said


def test_many_rows_are_thinned_and_said():
    html = build_report(record(rows=3000), {})
    assert "1,000 of 3,000 rows are drawn" in text_of(html) and len(html) < 400_000


def test_a_constant_answer_and_one_row_are_reported():
    run = record()
    constant = [{**row, "prediction": 2.5} for row in run.predictions]
    scores = {**run.metrics["test"], "pearson": None, "spearman": None}
    del scores["pearson_ci95"], scores["spearman_ci95"]
    run = replace(run, predictions=constant, metrics={**run.metrics, "test": scores})
    assert "same answer" in text_of(build_report(run, {}))
    assert "\u2013" in build_card(run, pipeline_tag=TEXT)
    single = replace(run, predictions=run.predictions[:1])
    assert "1 row" in text_of(build_report(single, {}))


def test_perfect_predictions_have_no_errors():
    run = record()
    right = replace(run, predictions=[{**row, "prediction": row["reference"]} for row in run.predictions])
    assert worst_errors(right) == []
    build_report(right, {})


@pytest.mark.parametrize("tag", [TEXT, IMAGE])
def test_a_card_is_that_of_numbers(tag):
    run = record(task=tag.replace("-", "_"))
    card = build_card(run, pipeline_tag=tag)
    assert "Predicts a number from" in card and "**RMSE 0." in card and "Mean of train" not in card
    assert "always answering 2.5" in card and "in the units of the data" in card
    assert "Calibration" not in card and "Confusion" not in card
    for hub_id in ("type: mse", "type: mae", "type: pearsonr", "type: spearmanr", "type: r_squared"):
        assert hub_id in card


def test_a_card_of_several_targets():
    card = build_card(record(("score", "length")), pipeline_tag=TEXT)
    assert "Predicts 2 numbers from a text: score, length" in card and "Per target (test" in card
    assert "RMSE (mean of the targets)" in card and "top_k=None" in card
    assert "type: mse" not in card and "type: pearsonr" in card  # a mean over units is no result to rank by


def test_a_worse_model_is_said_to_be_worse():
    run = record(noise=3.0)
    card, report = build_card(run, pipeline_tag=TEXT), text_of(build_report(run, {}))
    assert any(f"**The model is {word}**" in card and word in report for word in (CLEARLY_WORSE, NOT_CLEAR))


def test_runs_are_compared_by_their_error():
    better, worse = record(), replace(record(noise=2.0), name="noisy")
    said = text_of(build_comparison([worse, better]))
    assert "lower is better" in said and said.index("1. stars") < said.index("2. noisy")


def test_bars_of_errors_have_an_edge_at_zero():
    for values in ([-1.0, 2.0, 0.5], [3.0], [0.0, 0.0], [-5.0, -4.0]):
        edges, counts = _histogram(values)
        assert 0.0 in edges and sum(counts) == len(values) and len(edges) == len(counts) + 1
