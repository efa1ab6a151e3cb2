"""Adversarial training: the step of a given length that raises the loss most, and a loss made of both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_runs import briefly
from tiers import long
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.base import LossParts, TrainBatch
from sft_hf.techniques.regularization.adversarial import Adversarial, perturbation
from sft_hf.techniques.regularization.settings import AdversarialSettings


def test_the_step_has_its_length_in_every_row_and_points_up():
    gradients = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    gradients[2] = 0
    steps = perturbation(gradients, 0.7)
    for row, (step, gradient) in enumerate(zip(steps.double(), gradients.double(), strict=True)):
        if row == 2:
            assert not step.any()
            continue
        expected = 0.7 * gradient.numpy() / np.sqrt((gradient.numpy() ** 2).sum())
        np.testing.assert_allclose(step.numpy(), expected, rtol=1e-5)


def test_no_other_step_of_that_length_raises_a_linear_loss_more():
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(1, 6, generator=generator)
    best = (slope * perturbation(slope, 0.3)).sum()
    others = torch.randn(1000, 6, generator=generator)
    others = 0.3 * others / others.norm(dim=1, keepdim=True)
    assert ((slope * others).sum(dim=1) <= best).all()


class Numbers:
    """A task whose rows are vectors of numbers already."""

    def as_embeddings(self, model, batch):
        return "x", batch


def squares(model, batch):
    return (model(batch.inputs["x"]) ** 2).sum(dim=1)


def adversarial_of(**settings):
    return Adversarial(AdversarialSettings(**settings), None).wrap_loss(squares, LossParts(Numbers(), None))


def test_loss_and_gradient_against_a_computation_by_hand():
    """Of (w.x)^2 the gradient in x is 2 (w.x) w; moved along it, w.x becomes w.x + sign(w.x) eps |w|."""
    model = nn.Linear(3, 1, bias=False).double()
    w = np.array([1.0, -2.0, 0.5])
    x = np.array([[0.3, 0.1, -1.0], [2.0, 0.5, 0.7]])
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w))
    losses = adversarial_of(epsilon=0.4, weight=0.25)(model, TrainBatch({"x": torch.from_numpy(x)}))
    losses.sum().backward()
    expected, slope = [], np.zeros(3)
    for row in x:
        r = 0.4 * np.sign(w @ row) * w / np.linalg.norm(w)  # a constant: nothing is learned through it
        expected.append(0.75 * (w @ row) ** 2 + 0.25 * (w @ (row + r)) ** 2)
        slope += 0.75 * 2 * (w @ row) * row + 0.25 * 2 * (w @ (row + r)) * (row + r)
    np.testing.assert_allclose(losses.detach().numpy(), expected)
    np.testing.assert_allclose(model.weight.grad.numpy()[0], slope)


def test_looking_for_the_step_leaves_no_gradient():
    model = nn.Linear(3, 1).double()
    adversarial_of()(model, TrainBatch({"x": torch.ones(2, 3, dtype=torch.float64)}))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_running_statistics_are_those_of_the_plain_rows_and_gradients_pass_through():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    same = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    same.load_state_dict(model.state_dict())
    rows = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    adversarial_of(epsilon=2.0)(model, TrainBatch({"x": rows})).sum().backward()
    same(rows)
    for name, value in same.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], value), name
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_row_is_moved_the_same_in_any_batch():
    model = nn.Linear(3, 2).double()
    rows = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = adversarial_of()(model, TrainBatch({"x": rows}))
    alone = [adversarial_of()(model, TrainBatch({"x": row[None]})) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone))


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("frozen", [[], long(["bert.embeddings"])])
def test_a_step_is_the_same_however_it_is_cut_and_costs_more_than_plain(make_recipe, tmp_path, frozen):
    losses = {}
    for name, batch_size, accumulation in (("plain", 8, 1), ("whole", 8, 1), ("cut", 2, 4)):
        recipe = make_recipe(
            techniques=[] if name == "plain" else [{"name": "adversarial"}],
            model__config_overrides=NO_DROPOUT,
            train__per_device_train_batch_size=batch_size,
            train__gradient_accumulation_steps=accumulation,
            train__max_steps=1,
            train__freeze=frozen,
            eval__baseline="none",
            output_dir=str(tmp_path / name),
        )
        losses[name] = briefly(recipe).metrics["train"]["final_loss"]
    assert losses["whole"] == pytest.approx(losses["cut"], rel=1e-5)
    assert losses["whole"] > losses["plain"] + 0.01


def test_it_goes_with_mixup_and_bf16(make_recipe, tmp_path):
    losses = {}
    for names in (("mixup",), ("adversarial",), ("mixup", "adversarial")):
        recipe = make_recipe(
            techniques=[{"name": name} for name in names],
            model__config_overrides=NO_DROPOUT,
            train__mixed_precision="bf16",
            train__max_steps=1,
            eval__baseline="none",
            output_dir=str(tmp_path / "-".join(names)),
        )
        losses[names] = briefly(recipe).metrics["train"]["final_loss"]
    both = losses.pop(("mixup", "adversarial"))
    assert math.isfinite(both)
    assert both > losses["mixup",]  # the disturbance makes it worse on the very rows that mixup makes
    assert both != losses["adversarial",]


@pytest.mark.parametrize("setting", [{"train__mixed_precision": "fp16"}, {"train__torch_compile": "on"}])
def test_what_it_does_not_go_with(make_recipe, setting):
    with pytest.raises(RecipeError, match="adversarial cannot be combined with train"):
        make_recipe(techniques=[{"name": "adversarial"}], **setting)
