"""Learning rates by name: which they are, what they do in a step, and what is a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import OptimSection
from sft_hf.engine.optimization import build_optimizer
from sft_hf.jobs.finetune import finetune
from sft_hf.techniques.transfer.discriminative_learning_rates import scales_by_name


def test_factors_of_patterns_that_fit_are_multiplied():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    assert scales_by_name(model, {"body": 0.5, "*.bias": 3.0}) == {
        "body.weight": 0.5,
        "body.bias": 1.5,
        "head.bias": 3.0,
    }


def test_a_step_of_sgd_is_as_long_as_the_rate_says():
    """Equation 2 of the paper: theta_l <- theta_l - eta_l g_l."""
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    section = OptimSection(name="sgd", learning_rate=0.1, weight_decay=0.0, args={"momentum": 0.0})
    optimizer = build_optimizer(model, section, scales_by_name(model, {"head": 10.0, "body.bias": 0.5}))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, step in {"head.weight": 1.0, "head.bias": 1.0, "body.weight": 0.1, "body.bias": 0.05}.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), before[name] - step)


@pytest.mark.parametrize(
    ("make", "scales", "words"),
    [
        ("make_recipe", {"clasifier": 10}, "discriminative_learning_rates: scales: 'clasifier'.*did you mean classif"),
        ("make_speech_recipe", {"backbone": 0.1}, "discriminative_learning_rates: scales: Whisper.* has no head"),
    ],
)
def test_a_pattern_that_fits_nothing_is_a_mistake_of_one_line(request, make, scales, words):
    recipe = request.getfixturevalue(make)(techniques=[{"name": "discriminative_learning_rates", "scales": scales}])
    with pytest.raises(RecipeError, match=words) as caught:
        finetune(recipe)
    assert "\n" not in str(caught.value) and "train.freeze" not in str(caught.value)
    assert not Path(recipe.output_dir).exists()


@pytest.mark.parametrize("settings", [{}, {"scales": {}}, {"scales": {"classifier": 0}}])
def test_no_scales_or_one_that_is_zero_are_refused(make_recipe, settings):
    with pytest.raises(RecipeError, match="discriminative_learning_rates: scales"):
        make_recipe(techniques=[{"name": "discriminative_learning_rates", **settings}])
