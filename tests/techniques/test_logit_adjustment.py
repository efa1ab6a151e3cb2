"""Logit adjustment: the loss of a run by hand, and what it is for."""

import math

import numpy as np
import pytest
import torch

from sft_hf.errors import RecipeError
from sft_hf.techniques.logit_adjustment import adjusted, log_prior

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
    with pytest.raises(RecipeError, match="does not serve multi-label data"):
        first_step(["logit_adjustment"], [["sport"], ["money", "food"], []])
