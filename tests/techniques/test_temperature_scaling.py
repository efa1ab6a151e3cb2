"""Temperature scaling: the fit, what it does to confidence, what it leaves alone, and that the saved model keeps it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import soundfile
import torch
from small_runs import briefly

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.data.examples import Examples
from sft_hf.jobs.inference import evaluate_run, open_trained
from sft_hf.jobs.run import predict_files
from sft_hf.tasks.speech.scorer import Reference
from sft_hf.techniques.confidence.temperature_scaling import (
    HIGHEST,
    LOWEST,
    TemperatureScaling,
    TemperatureScalingSettings,
    fit_temperature,
    mean_loss,
)

SCALING = [{"name": "temperature_scaling"}]


def reference_loss(logits, targets, temperature):
    """Row by row, as the paper writes it: - sum of log sigma_SM(z / T)^(y)."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        scaled = [value / temperature for value in row]
        total -= scaled[target] - np.log(sum(np.exp(value) for value in scaled))
    return total / len(targets)


def sharpened(rows, classes, temperature, seed=0):
    """Labels drawn from softmax(z); the logits are T times z, so that T is what makes them right again."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(rows, classes)) * 2
    share = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    targets = [generator.choice(classes, p=row) for row in share]
    return torch.tensor(true * temperature), torch.tensor(targets)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature):
    logits, targets = sharpened(4000, 5, temperature)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_temperature_is_likelier(seed):
    logits, targets = sharpened(50, 3, 2.0, seed)
    found = fit_temperature(logits.float(), targets)
    best = reference_loss(logits.tolist(), targets.tolist(), found)
    assert mean_loss(logits, targets, found) == pytest.approx(best)
    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert reference_loss(logits.tolist(), targets.tolist(), found * factor) > best


def test_where_all_are_right_or_none_the_bounds_are_told():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == LOWEST
    assert fit_temperature(logits, torch.tensor([1, 0])) == HIGHEST


def config_of(run):
    return json.loads((run.output_dir / "model" / "config.json").read_text())


SHORT = {
    "eval__baseline": "none",
    "train__max_steps": 4,
    "data__validation_fraction": 0.3,
    "optim__learning_rate": 3e-3,
}


def test_confidence_changes_and_no_answer_does(make_recipe, tmp_path):
    plain = briefly(make_recipe(output_dir=str(tmp_path / "plain"), **SHORT))
    scaled = briefly(make_recipe(output_dir=str(tmp_path / "scaled"), techniques=SCALING, **SHORT))
    told = scaled.metrics["techniques"]["temperature_scaling"]
    temperature = told["temperature"]
    assert temperature not in (1.0, LOWEST, HIGHEST)
    assert told["validation_nll"] < told["validation_nll_before"]
    assert told["validation_nll_before"] == pytest.approx(plain.metrics["validation"]["loss"], abs=1e-6)
    assert told["validation_ece_before"] == plain.metrics["validation"]["ece"]
    assert told["validation_ece"] == scaled.metrics["validation"]["ece"]
    assert scaled.metrics["test"]["ece"] != plain.metrics["test"]["ece"]
    for name in ("accuracy", "macro_f1", "loss"):
        assert scaled.metrics["test"][name] == plain.metrics["test"][name]
    assert "techniques" not in plain.metrics
    assert not {"confidence_temperature", "abstention_threshold"} & set(config_of(plain))
    assert config_of(scaled)["confidence_temperature"] == temperature

    before, after = (list(predict_files(run.output_dir, ["goal match", "bank rate"])) for run in (plain, scaled))
    assert [row["prediction"] for row in before] == [row["prediction"] for row in after]
    assert [row["confidence"] for row in before] != [row["confidence"] for row in after]
    assert evaluate_run(scaled.output_dir)["ece"] == pytest.approx(scaled.metrics["test"]["ece"], abs=1e-6)

    model = str(scaled.output_dir / "model")
    again = briefly(make_recipe(output_dir=str(tmp_path / "again"), model__name=model, **SHORT))
    assert "confidence_temperature" not in config_of(again), "it belongs to the training that has fitted it"

    path = scaled.output_dir / "model" / "config.json"
    path.write_text(json.dumps({**config_of(scaled), "confidence_temperature": 0}))
    with pytest.raises(CheckpointError, match="confidence_temperature is 0; it must be a number above 0"):
        list(predict_files(scaled.output_dir, ["goal"]))


def test_several_labels_keep_their_answers_with_a_threshold_that_is_scaled_too(make_recipe, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        rows = [{"text": f"bank {word}", "label": ["x"] if word < "n" else ["x", "y"]} for word in "abcdefopqrst"]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = briefly(make_recipe(data__name=str(tmp_path / "data"), train__max_steps=1, eval__baseline="none"))
    task = open_trained(run.output_dir)[1]
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randint(2, (60, 2), generator=generator)
    outputs = {"logits": 3 * wanted - 4 + 4 * torch.randn(60, 2, generator=generator)}  # too low, and too sure
    examples = Examples([], np.ones(60), np.arange(60), [row.nonzero()[:, 0].tolist() for row in wanted])
    task.scorer.tune(outputs, examples)
    threshold, before = task.scorer.threshold, task.scorer.decode(outputs)
    told = TemperatureScaling(TemperatureScalingSettings(), None).after_training(task, outputs, examples)
    assert 1.5 < told["temperature"] < HIGHEST
    share = np.log(threshold / (1 - threshold)) / told["temperature"]
    scaled = 1 / (1 + np.exp(-share))
    assert task.scorer.threshold == pytest.approx(scaled, rel=1e-5) != pytest.approx(threshold, abs=0.05)
    assert [row["prediction"] for row in task.scorer.decode(outputs)] == [row["prediction"] for row in before]


def transcript_outputs(task, right):
    """Outputs for transcripts of which some are right, all of them with a confidence of 0.9."""
    texts = [Reference("one two" if one else "six") for one in right]
    tokens = torch.tensor([task.family.encode("one two")] * len(right))
    return {"tokens": tokens, "confidence": torch.full((len(right),), 0.9)}, texts


def test_of_transcripts_the_confidence_tells_how_often_one_is_right(make_speech_recipe, speech_clip, tmp_path):
    """60 % right at a confidence of 0.9: T takes that to 0.6, whatever the model."""
    run = briefly(make_speech_recipe(train__max_steps=1, eval__baseline="none"))
    soundfile.write(tmp_path / "clip.wav", speech_clip("one two"), 16_000)
    before = next(iter(predict_files(run.output_dir, [str(tmp_path / "clip.wav")])))["confidence"]

    _, task, model = open_trained(run.output_dir)
    outputs, references = transcript_outputs(task, [True, True, True, False, False] * 8)
    examples = Examples([], np.ones(40), np.arange(40), references)
    told = TemperatureScaling(TemperatureScalingSettings(), None).after_training(task, outputs, examples)
    expected = np.log(0.9 / 0.1) / np.log(0.6 / 0.4)
    assert told["temperature"] == task.scorer.confidence.temperature == pytest.approx(expected, rel=1e-5)
    assert told["validation_ece_before"] == pytest.approx(0.3) and told["validation_ece"] == pytest.approx(0, abs=1e-6)
    assert [row["confidence"] for row in task.scorer.decode(outputs)] == pytest.approx([0.6] * 40)

    task.save(model, run.output_dir / "model")
    after = next(iter(predict_files(run.output_dir, [str(tmp_path / "clip.wav")])))["confidence"]
    assert after == pytest.approx(1 / (1 + np.exp(-np.log(before / (1 - before)) / expected)), rel=1e-4)


def test_where_every_answer_is_right_the_temperature_stays_one(make_speech_recipe, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    run = briefly(make_speech_recipe(train__max_steps=1, eval__baseline="none"))
    task = open_trained(run.output_dir)[1]
    outputs, references = transcript_outputs(task, [True] * 6)
    examples = Examples([], np.ones(6), np.arange(6), references)
    told = TemperatureScaling(TemperatureScalingSettings(), None).after_training(task, outputs, examples)
    assert told["temperature"] == task.scorer.confidence.temperature == 1.0
    assert "the best temperature for validation (6 rows) is below the minimum" in caplog.text


def test_without_validation_it_is_refused(make_recipe):
    with pytest.raises(RecipeError, match="temperature_scaling needs a validation split to choose on"):
        briefly(make_recipe(techniques=SCALING, data__validation_fraction=0))
