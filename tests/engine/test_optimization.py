"""Optimizers, groups and schedules."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import OptimSection
from sft_hf.engine.optimization import (
    build_optimizer,
    build_scheduler,
    optimizer_classes,
    parameter_groups,
)
from sft_hf.models.head_rate import with_head_scale


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def test_biases_and_norms_do_not_decay():
    groups = parameter_groups(model(), 0.1, 1e-3)
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(net, 0.1, 1e-3)) == 4


@pytest.mark.parametrize("name", sorted(optimizer_classes()))
def test_every_optimizer_of_torch_lowers_the_loss(name):
    net = model()
    optimizer = build_optimizer(net, OptimSection(name=name, learning_rate=1e-2))
    inputs, labels = torch.randn(64, 4), torch.randint(0, 2, (64,))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(inputs), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_sgd_has_momentum_unless_told_otherwise():
    assert build_optimizer(model(), OptimSection(name="sgd")).defaults["momentum"] == 0.9
    plain = build_optimizer(model(), OptimSection(name="sgd", args={"momentum": 0.0}))
    assert plain.defaults["momentum"] == 0.0


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "adamx"}, ["optim.name", "adamx", "did you mean adam", "adamw"]),
        ({"args": {"beta": 1}}, ["optim.args.beta", "AdamW", "did you mean betas"]),
        ({"args": {"betas": [2.0, 3.0]}}, ["optim", "beta"]),
        ({"args": {"lr": 1.0}}, ["optim.args.lr"]),
    ],
)
def test_a_wrong_optimizer_is_an_error_that_says_what_is_right(section, words):
    with pytest.raises(RecipeError) as caught:
        build_optimizer(model(), OptimSection(**section))
    assert all(word in str(caught.value) for word in words), caught.value


def test_eight_bits_without_bitsandbytes_are_a_mistake_that_says_what_is_missing(make_recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    recipe = make_recipe(optim__name="adamw_8bit")
    with pytest.raises(RecipeError, match=r"optim\.name: adamw_8bit needs bitsandbytes; pip install") as caught:
        briefly(recipe)
    assert "\n" not in str(caught.value) and not Path(recipe.output_dir).exists()


def test_eight_bits_whose_kernels_do_not_run_here_are_a_mistake(monkeypatch):
    """A stand-in for bitsandbytes on a device that it has no kernels for."""

    class AdamW8bit(torch.optim.AdamW):
        def step(self, closure=None):
            raise NotImplementedError("no kernel\nfor this device")

    package = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=AdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package.optim)
    with pytest.raises(RecipeError, match=r"does not work on this \w+; use adamw \(no kernel for this device\)"):
        build_optimizer(model(), OptimSection(name="adamw_8bit"))


def test_a_run_with_eight_bits_is_resumed_to_the_same_bits(make_recipe, tmp_path):
    """Where bitsandbytes is installed; it works on CPUs too."""
    pytest.importorskip("bitsandbytes")
    options = {"optim__name": "adamw_8bit", "optim__args": {"min_8bit_size": 256}, "optim__learning_rate": 1e-3}
    options |= {"train__max_steps": 4, "checkpoint__save_steps": 2, "checkpoint__save_total_limit": 2}
    options |= {"eval__load_best_model_at_end": False}
    whole = briefly(make_recipe(output_dir=str(tmp_path / "whole"), **options))
    saved = load_file(whole.output_dir / "checkpoints" / "step-000002" / "optimizer.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if name.endswith("state1")} == {torch.uint8, torch.float32}
    shutil.copytree(whole.output_dir, tmp_path / "cut")
    for name in ("checkpoints/step-000004", "model"):
        shutil.rmtree(tmp_path / "cut" / name)
    (tmp_path / "cut" / "metrics.json").unlink()
    resumed = briefly(make_recipe(output_dir=str(tmp_path / "cut"), **options), resume=True)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_parameter_may_join_later_than_others_of_its_group(name):
    """As if it had an optimizer of its own, from then on; and until then not even weight decay touches it."""
    together, alone = ([nn.Parameter(torch.ones(2, 2)) for _ in range(2)] for _ in range(2))
    section = OptimSection(name=name, learning_rate=0.1, weight_decay=0.5)
    named = [
        SimpleNamespace(named_parameters=lambda p=p: [(str(id(x)), x) for x in p])
        for p in (together, *([x] for x in alone))
    ]
    optimizer, *each = (build_optimizer(holder, section) for holder in named)
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        for place in range(2):
            gradient = torch.randn(2, 2, generator=generator)
            joined = step >= 2 * place
            for parameters in (together, alone):
                parameters[place].grad = gradient.clone() if joined else None
            each[place].step()
        optimizer.step()
        assert torch.equal(together[0], alone[0]) and torch.equal(together[1], alone[1])
        assert (together[1] == 1).all() == (step < 2)


def rates(kind, warmup_ratio, steps=10):
    section = OptimSection(learning_rate=1.0, lr_scheduler_type=kind, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, section, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_by_hand():
    assert rates("linear", 0.2) == pytest.approx([0, 0.5, *[1 - i / 8 for i in range(8)]])
    assert rates("cosine", 0.0) == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])
    assert rates("constant", 0.0) == [1.0] * 10
    assert rates("constant_with_warmup", 0.2) == [0.0, 0.5] + [1.0] * 8


def test_adamw_follows_the_paper():
    """One step by hand: Loshchilov and Hutter 2019, algorithm 2."""
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    holder = SimpleNamespace(named_parameters=lambda: [("weight", parameter)])
    optimizer = build_optimizer(holder, OptimSection(learning_rate=0.1, weight_decay=0.5))
    parameter.grad = torch.tensor([[0.3, -0.7]])
    optimizer.step()
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]])
    assert torch.allclose(parameter.detach(), expected, atol=1e-6)


# --- a new head ----------------------------------------------------------------------------------------------------


class _Pooled(nn.Module):
    """A backbone, one new weight in it, and a new head."""

    base_model_prefix = "backbone"
    head_rate_scale = 10.0

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        self.classifier = nn.Linear(2, 2)
        self.new_weights = ("backbone.1.weight", "classifier.weight", "classifier.bias")


def _rates(scales, **section):
    model = _Pooled()
    section = OptimSection(learning_rate=1e-3, **section)
    groups = parameter_groups(model, 0.0, 1e-3, with_head_scale(model, section, scales))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert groups[0]["lr"] == pytest.approx(1e-3)  # the rate that the log reports
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_a_new_head_on_pooled_vectors_has_ten_times_the_rate_and_its_backbone_has_not():
    rates = _rates({})
    assert {name for name, rate in rates.items() if rate == pytest.approx(1e-2)} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert _rates({"classifier.weight": 3.0})["classifier.weight"] == pytest.approx(3e-3)  # a technique's own factor


@pytest.mark.parametrize(("rate", "scale"), [(4e-3, 1.0), (5e-4, 2.0)])
def test_the_rate_of_a_new_head_can_be_given(rate, scale):
    rates = _rates({"classifier.weight": scale}, head_learning_rate=rate)
    assert rates["classifier.weight"] == pytest.approx(rate * scale)
    assert rates["backbone.1.weight"] == pytest.approx(1e-3)
