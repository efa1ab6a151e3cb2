"""Generalized cross-entropy: the paper's equation, its limits, and the loss of a run by hand."""

import math

import numpy as np
import pytest
import torch

from sft_hf.core.errors import RecipeError
from sft_hf.engine.technique_stack import cross_entropy
from sft_hf.techniques.labels.generalized_cross_entropy import generalized

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_it_is_the_papers_equation(q):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    found, p = generalized(cross_entropy(logits), q), torch.softmax(logits, dim=1)
    torch.testing.assert_close(found, (1 - p**q) / q)
    assert float(found.max()) <= 1 / q  # bounded, which cross-entropy is not


def test_its_limit_at_zero_is_cross_entropy():
    losses = cross_entropy(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(generalized(losses, 0.0), losses)
    torch.testing.assert_close(generalized(losses, 1e-4), losses, rtol=1e-3, atol=1e-3)


def test_a_run_trains_on_it(first_step):
    loss, logits, names = first_step([{"name": "generalized_cross_entropy", "q": 0.7}], LABELS)
    rows = []
    for values, label in zip(logits.tolist(), LABELS, strict=True):
        p = math.exp(values[names.index(label)]) / sum(map(math.exp, values))
        rows.append((1 - p**0.7) / 0.7)
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


def test_a_wrong_label_cannot_pull_for_ever():
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = generalized(cross_entropy(logits), 0.7)[0, 0]
    loss.backward()
    assert loss.item() == pytest.approx(1 / 0.7)
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("other", ["focal_loss", "bootstrapping"])
def test_there_is_one_loss_at_a_time(make_recipe, other):
    with pytest.raises(RecipeError, match=f"generalized_cross_entropy and {other} both"):
        make_recipe(techniques=["generalized_cross_entropy", other])
