"""Logit adjustment: the loss of a run by hand, and what it is for."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.labels.logit_adjustment import adjusted, log_prior

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]
COUNTS = {"sport": 5, "money": 2, "food": 1}


def test_a_label_without_rows_has_a_finite_prior():
    assert log_prior([3, 0, 1]).exp().tolist() == pytest.approx([3 / 5, 1 / 5, 1 / 5])


def test_the_loss_asks_for_a_margin_of_the_odds():
    logits, prior = torch.tensor([[1.0, 1.0]]), log_prior([9, 1])
    shifted = adjusted(logits, prior, 1.0)[0]
    assert (shifted[0] - shifted[1]).item() == pytest.approx(math.log(9))


def test_a_run_trains_on_it(first_step):
    loss, logits, names = first_step([{"name": "logit_adjustment", "tau": 1.5}], LABELS)
    rows = []
    for values, label in zip(logits.tolist(), LABELS, strict=True):
        shifted = [v + 1.5 * math.log(COUNTS[name] / 8) for v, name in zip(values, names, strict=True)]
        rows.append(math.log(sum(map(math.exp, shifted))) - shifted[names.index(label)])
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


def test_labels_beside_each_other_are_refused(first_step):
    with pytest.raises(RecipeError, match=r"logit_adjustment does not support this model: .*focal_loss"):
        first_step(["logit_adjustment"], [["sport"], ["money", "food"], []])


def test_what_is_as_likely_under_every_label_gets_equal_logits():
    """Inputs say nothing here: plain training learns the labels' shares, this one learns that all are alike."""
    counts = [6, 3, 1]
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    for tau, expected in ((0.0, log_prior(counts)), (1.0, torch.zeros(3))):
        bias = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([bias], max_iter=50)

        def closure(bias=bias, optimizer=optimizer, tau=tau):
            optimizer.zero_grad()
            loss = functional.cross_entropy(adjusted(bias.expand(10, 3), log_prior(counts), tau), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        torch.testing.assert_close(bias.detach() - bias.detach().mean(), expected - expected.mean(), rtol=0, atol=1e-3)
