"""Focal loss: against loops over plain numbers, in a run, single and multi-label, and with its slopes."""

import math

import numpy as np
import pytest
import torch
from tiers import long

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.labels.focal_loss import focal

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]
LISTS = [["sport"], ["sport", "money"], [], ["food"], ["sport", "money", "food"]]


def probability(logits, index):
    return math.exp(logits[index]) / sum(math.exp(value) for value in logits)


def focal_by_hand(p, gamma):
    return -((1 - p) ** gamma) * math.log(p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_it_is_the_papers_equation(gamma):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    found = focal(-torch.log_softmax(logits, dim=1), gamma)
    for row, values in enumerate(logits.tolist()):
        for index in range(4):
            assert found[row, index].item() == pytest.approx(focal_by_hand(probability(values, index), gamma), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_slopes_are_finite_where_an_item_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [1.0, 1.0]], requires_grad=True)
    losses = focal(-torch.log_softmax(logits, dim=1), gamma)
    losses[:, 0].sum().backward()
    assert losses[0, 0] == 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("labels", [LABELS, long(LISTS)], ids=["single", "multi"])
def test_a_run_trains_on_it(first_step, labels):
    loss, logits, names = first_step([{"name": "focal_loss", "gamma": 2.0}], labels)
    rows = []
    for values, label in zip(logits.tolist(), labels, strict=True):
        if isinstance(label, str):
            rows.append(focal_by_hand(probability(values, names.index(label)), 2.0))
            continue
        yes = [1 / (1 + math.exp(-value)) for value in values]
        right = [p if name in label else 1 - p for p, name in zip(yes, names, strict=True)]
        rows.append(np.mean([focal_by_hand(p, 2.0) for p in right]))
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


@pytest.mark.parametrize("other", ["generalized_cross_entropy", "bootstrapping"])
def test_there_is_one_loss_at_a_time(make_recipe, other):
    with pytest.raises(RecipeError, match=f"focal_loss and {other} both"):
        make_recipe(techniques=["focal_loss", other])
