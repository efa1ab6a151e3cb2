"""LayerDrop: which layers a step leaves out, that they are left out, and that the way it is done does not show."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_runs import briefly
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.regularization.layer_drop import LayerDrop, dropped_layers
from sft_hf.techniques.regularization.settings import LayerDropSettings


class Block(nn.Module):
    """A residual layer with dropout that may return more than its hidden states, and counts its calls."""

    def __init__(self, extra):
        super().__init__()
        self.extra, self.inner, self.dropout, self.calls = extra, nn.Linear(3, 3), nn.Dropout(0.5), 0

    def forward(self, states, mask=None):
        self.calls += 1
        after = states + self.dropout(self.inner(states))
        return (after, mask) if self.extra else after


class Stack(nn.Module):
    def __init__(self, layers=3, extra=False):
        super().__init__()
        self.layers = nn.ModuleList(Block(extra) for _ in range(layers))

    def forward(self, states):
        for layer in self.layers:
            output = layer(states, mask=None)
            states = output[0] if isinstance(output, tuple) else output
        return states


def apply(model, probability=0.5, seed=0):
    technique = LayerDrop(
        LayerDropSettings(probability=probability), SimpleNamespace(recipe=SimpleNamespace(seed=seed))
    )
    technique.prepare_model(model)
    return technique


def turn_off(technique, *layers):
    for number, switch in enumerate(technique.switches):
        switch.off = number in layers


def test_each_layer_is_dropped_with_the_probability_by_itself():
    drawn = torch.tensor([dropped_layers(4, 0.3, seed=1, step=step).tolist() for step in range(5000)]).float()
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.3] * 4, abs=0.03)
    together = (drawn[:, 0] * drawn[:, 1]).mean()
    assert together == pytest.approx(0.09, abs=0.02)
    assert (dropped_layers(4, 0.3, 1, 7) == dropped_layers(4, 0.3, 1, 7)).all()


@pytest.mark.parametrize("extra", [False, True])
def test_a_step_without_some_layers_is_a_step_of_the_smaller_model(extra):
    torch.manual_seed(0)
    model, smaller = Stack(extra=extra), Stack(layers=2, extra=extra)
    smaller.layers[0].load_state_dict(model.layers[0].state_dict())
    smaller.layers[1].load_state_dict(model.layers[2].state_dict())
    technique = apply(model)
    turn_off(technique, 1)
    states = torch.randn(4, 3)
    for _ in range(2):  # the first time, what the layer returns is not known yet; dropout draws the same all the same
        for one in (model, smaller):
            one.zero_grad()
            torch.manual_seed(1)
            one(states).square().sum().backward()
        assert torch.equal(model.layers[0].inner.weight.grad, smaller.layers[0].inner.weight.grad)
        assert torch.equal(model.layers[2].inner.weight.grad, smaller.layers[1].inner.weight.grad)
        assert model.layers[1].inner.weight.grad is None
        technique.change_gradients(model)
        assert torch.equal(model.layers[1].inner.weight.grad, torch.zeros(3, 3))
    assert model.layers[1].calls == (2 if extra else 1)


def test_the_layers_are_a_function_of_seed_and_step_and_change():
    first, second = apply(Stack(layers=8), seed=3), apply(Stack(layers=8), seed=3)
    patterns = []
    for step in range(6):
        first.before_step(nn.Module(), step)
        patterns.append(tuple(switch.off for switch in first.switches))
    second.before_step(nn.Module(), 4)  # as a resumed run comes to it
    assert tuple(switch.off for switch in second.switches) == patterns[4]
    assert len(set(patterns)) > 3


def test_evaluation_uses_all_layers_and_frozen_ones_stay():
    torch.manual_seed(0)
    model = Stack().eval()
    states = torch.randn(4, 3)
    before = model(states)
    names = set(model.state_dict())
    technique = apply(model)
    turn_off(technique, 0, 1, 2)
    assert torch.equal(model(states), before)
    assert set(model.state_dict()) == names
    model.train()
    assert torch.equal(model(states), states)
    frozen = Stack()
    frozen.layers[0].requires_grad_(False)
    technique = apply(frozen)
    assert technique.switches[0] is None and technique.switches[1] is not None


class Wider(Block):
    def forward(self, states, mask=None):
        return torch.cat([states, states], dim=1)


def test_a_layer_that_changes_the_shape_is_never_left_out():
    model = Stack(layers=0)
    model.layers = nn.ModuleList([Wider(False)])
    turn_off(apply(model), 0)
    assert model.train()(torch.ones(2, 3)).shape == (2, 6)


def test_an_optimizer_with_momentum_meets_layers_that_were_left_out(make_recipe):
    """The first step leaves out a layer of the two, and a later one does not."""
    drawn = [tuple(dropped_layers(2, 0.5, seed=42, step=step)) for step in range(4)]
    assert len(set(drawn)) > 2 and any(drawn[0])
    short = {"train__max_steps": 4, "data__max_train_samples": 32, "eval__baseline": "none"}
    drop = [{"name": "layer_drop", "probability": 0.5}]
    run = briefly(make_recipe(techniques=drop, optim__name="sgd", seed=42, **short))
    assert run.metrics["train"]["num_steps"] == 4


def test_what_it_refuses(make_recipe):
    with pytest.raises(RecipeError, match="layer_drop: Linear has no repeated layers to skip"):
        apply(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match=r"layer_drop cannot be combined with train\.torch_compile"):
        make_recipe(techniques=[{"name": "layer_drop"}], train__torch_compile="on")
