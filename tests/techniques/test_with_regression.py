"""Techniques with models that predict numbers: each goes, or says in one sentence why it does not."""

from __future__ import annotations

import pytest
import torch
from small_runs import briefly, interrupted_and_resumed, same, weights
from tiers import quick
from tiny_data import make_rows, write_csv

from sft_hf.cli.technique_pages import explain
from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import validate_recipe
from sft_hf.core.recipe.registry import component_names, load_settings

REFUSED = {
    "abstention",
    "balanced_sampling",
    "bootstrapping",
    "class_weights",
    "focal_loss",
    "generalized_cross_entropy",
    "label_smoothing",
    "logit_adjustment",
    "r_drop",
    "temperature_scaling",
}
TRAINED = ("mixup", "adversarial", "ema", "swa", "sam", "lp_ft", "reinit_layers")


@pytest.fixture
def make(make_recipe, tmp_path):
    """A recipe of two short steps, on texts whose target is their length."""
    for split, count in (("train", 16), ("test", 6)):
        rows = [{"text": row["text"], "y": len(row["text"]) / 7} for row in make_rows(count, seed=count)]
        write_csv(tmp_path / "data" / f"{split}.csv", rows)
    short = {"train__max_steps": 2, "train__per_device_train_batch_size": 4, "checkpoint__save_steps": 1}
    task = {"name": "text_classification", "max_length": 32, "problem_type": "regression"}
    data = {"data__name": str(tmp_path / "data"), "data__label_column": "y", "eval__baseline": "none"}
    return lambda **changes: make_recipe(task=task, **data, **short, **changes)


def settings_of(name):
    return {"name": name, **load_settings("techniques", name).example}


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("task", ["text_classification", "image_classification"])
def test_what_is_about_classes_is_refused_with_the_recipe(task, name):
    recipe = {
        "task": {"name": task, "problem_type": "regression"},
        "model": {"name": "m"},
        "data": {"name": "d"},
        "techniques": [settings_of(name)],
    }
    with pytest.raises(RecipeError, match=f"{name} cannot be combined with regression: "):
        validate_recipe(recipe)
    recipe["task"]["problem_type"] = "auto"
    validate_recipe(recipe)
    assert any("Not with regression" in line for line in explain(name).lines())


def test_every_technique_is_known_here():
    refused = {n for n in component_names("techniques") if load_settings("techniques", n).reason_against_regression()}
    assert refused == REFUSED


@pytest.mark.parametrize("name", quick(["mixup", "ema", "lp_ft"], TRAINED))
def test_others_train_and_resume_to_the_same_bits(name, make, tmp_path):
    techniques = [settings_of(name)]
    whole = briefly(make(techniques=techniques, output_dir=str(tmp_path / "whole")))
    cut = interrupted_and_resumed(make(techniques=techniques, output_dir=str(tmp_path / "cut")), stop_at=1)
    assert same(weights(whole.output_dir), weights(cut.output_dir))
    assert all(torch.isfinite(tensor).all() for tensor in weights(whole.output_dir).values())
    assert whole.metrics["test"] == cut.metrics["test"]
    assert 0 < whole.metrics["test"]["rmse"] < 100  # in the units of the data


def test_mixup_mixes_targets():
    from sft_hf.tasks.regression import RegressionTask

    first, second = torch.tensor([[1.0, 10.0], [0.0, 0.0]]), torch.tensor([[3.0, 20.0], [1.0, 1.0]])
    mixed = RegressionTask.mixed_labels(None, first, second, torch.tensor([0.75, 1.0]))
    assert mixed.tolist() == [[1.5, 12.5], [0.0, 0.0]]
