"""Label smoothing: torch's own, and in a run a loop over plain numbers."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sft_hf.technique_stack import cross_entropy
from sft_hf.techniques.label_smoothing import smoothed

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]
LISTS = [["sport"], ["sport", "money"], [], ["food"], ["sport", "money", "food"]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_it_is_torchs(smoothing):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = smoothed(cross_entropy(logits), smoothing).gather(1, labels[:, None])[:, 0]
    wanted = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("labels", [LABELS, LISTS], ids=["single", "multi"])
def test_a_run_trains_on_it(first_step, labels):
    loss, logits, names = first_step([{"name": "label_smoothing", "smoothing": 0.2}], labels)
    rows = []
    for values, label in zip(logits.tolist(), labels, strict=True):
        if isinstance(label, str):
            share = {name: 0.2 / 3 + 0.8 * (name == label) for name in names}
            total = math.log(sum(math.exp(value) for value in values))
            rows.append(sum(share[name] * (total - value) for name, value in zip(names, values, strict=True)))
            continue
        yes = [1 / (1 + math.exp(-value)) for value in values]
        share = {name: 0.1 + 0.8 * (name in label) for name in names}
        own = [-share[n] * math.log(p) - (1 - share[n]) * math.log(1 - p) for n, p in zip(names, yes, strict=True)]
        rows.append(np.mean(own))
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)
