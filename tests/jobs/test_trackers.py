"""Experiment trackers hear what log.jsonl holds; a tracker that is not there, or cannot start, ends no run half-way."""

from __future__ import annotations

import importlib.util
import json

import pytest
import yaml

from sft_hf.core.errors import RecipeError, UserError
from sft_hf.jobs.finetune import finetune


def test_none_by_default(make_recipe, tmp_path):
    finetune(make_recipe(train__max_steps=1))
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_tensorboard_has_the_numbers_of_the_log(make_recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = finetune(make_recipe(report_to=["tensorboard"], train__max_steps=6, train__logging_steps=2))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "sft-hf")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(loss)) for step, loss in expected
    ]
    assert len(expected) == 3
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(result.metrics["test"]["accuracy"])
    (settings,) = (tmp_path / "run" / "tensorboard").rglob("hparams.yml")
    assert yaml.safe_load(settings.read_text())["optim.learning_rate"] == 1e-2


def test_a_package_that_is_not_there_is_named_before_anything_is_written(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sft_hf.jobs.trackers.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="report_to: mlflow is not installed; pip install mlflow"):
        finetune(make_recipe(report_to=["mlflow"]))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_touches_no_earlier_run(make_recipe, tmp_path, monkeypatch):
    finetune(make_recipe(train__max_steps=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    monkeypatch.setattr("sft_hf.jobs.trackers.find_spec", lambda name: True)
    with pytest.raises(UserError, match="report_to: wandb cannot start: "):  # it is not installed
        finetune(make_recipe(report_to=["wandb"]), overwrite=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_an_unknown_tracker_is_a_mistake(make_recipe):
    with pytest.raises(RecipeError, match="report_to"):
        make_recipe(report_to=["notebook"])


@pytest.mark.long
def test_where_a_run_reports_is_no_part_of_what_it_is(make_recipe, commands, recipe_file, tmp_path):
    arguments = ("finetune", str(recipe_file), "--output-dir", str(tmp_path / "out"))
    assert commands.run(*arguments, SFT_HF_FAIL_POINT="step-000008:1").wait() == -9
    resumed = commands.run(*arguments, "--resume", "report_to=[tensorboard]")
    assert resumed.wait() == 0, resumed.said()
    assert list((tmp_path / "out" / "tensorboard").rglob("events*"))
