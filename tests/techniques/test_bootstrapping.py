"""Bootstrapping: against loops over plain numbers, and the loss of a run."""

import math

import numpy as np
import pytest
import torch
from tiers import long

from sft_hf.engine.technique_stack import cross_entropy
from sft_hf.techniques.labels.bootstrapping import hard, soft

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]


def by_hand(values, label, beta, mode):
    """-sum_k (b t_k + (1 - b) z_k) log p_k, with z the probabilities, or one-hot for the likeliest."""
    p = [math.exp(value) / sum(map(math.exp, values)) for value in values]
    best = p.index(max(p))
    believed = p if mode == "soft" else [float(index == best) for index in range(len(p))]
    return -sum(
        (beta * (index == label) + (1 - beta) * believed[index]) * math.log(p[index]) for index in range(len(p))
    )


@pytest.mark.parametrize(("mode", "function"), [("soft", soft), ("hard", hard)])
def test_it_is_the_papers_equation(mode, function):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    found = function(cross_entropy(logits), 0.8)
    for row, values in enumerate(logits.tolist()):
        for label in range(4):
            assert found[row, label].item() == pytest.approx(by_hand(values, label, 0.8, mode), rel=1e-4)


@pytest.mark.parametrize("mode", ["soft", long("hard")])
def test_a_run_trains_on_it(first_step, mode):
    loss, logits, names = first_step([{"name": "bootstrapping", "mode": mode, "beta": 0.6}], LABELS)
    rows = [by_hand(v, names.index(label), 0.6, mode) for v, label in zip(logits.tolist(), LABELS, strict=True)]
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


def test_the_soft_form_makes_the_entropy_smaller():
    """The gradient goes through both factors of p log p, and is finite where p is 0."""
    logits = torch.tensor([[1.0, 0.0, -0.5], [300.0, 0.0, -300.0]], requires_grad=True)
    soft(-torch.log_softmax(logits, dim=1), 0.0)[:, 0].sum().backward()
    values = logits.detach().double().requires_grad_()
    torch.distributions.Categorical(logits=values[:1]).entropy().sum().backward()
    torch.testing.assert_close(logits.grad[:1].double(), values.grad[:1])
    assert torch.isfinite(logits.grad).all()
