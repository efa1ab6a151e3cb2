"""R-Drop: the paper's equation by hand, two different passes, and a model without dropout that it leaves alone."""

import math

import pytest
import torch

from sft_hf.technique_stack import cross_entropy
from sft_hf.techniques.r_drop import agreeing, divergence

LISTS = [["sport"], ["money", "food"], []]
LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_the_divergence_goes_both_ways():
    torch.manual_seed(0)
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    found = divergence(first, second)
    for row in range(5):
        p, q = (torch.softmax(logits[row], dim=0).tolist() for logits in (first, second))
        assert found[row].item() == pytest.approx(kl(p, q) + kl(q, p), rel=1e-4)
    assert torch.equal(divergence(first, first), torch.zeros(5))


def test_it_is_the_mean_loss_and_the_divergence():
    torch.manual_seed(0)
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    found = agreeing(first, second, cross_entropy, 3.0)
    both = (cross_entropy(first) + cross_entropy(second)) / 2
    torch.testing.assert_close(found - both, (3.0 / 2 * divergence(first, second))[:, None].expand(5, 4))


@pytest.mark.parametrize("others", [[], ["mixup"]], ids=["alone", "of mixtures"])
@pytest.mark.parametrize("labels", [LABELS, LISTS], ids=["single", "multi"])
def test_without_dropout_both_passes_agree(first_step, labels, others, tmp_path):
    plain, *_ = first_step(others, labels, output_dir=str(tmp_path / "plain"))
    found, *_ = first_step([{"name": "r_drop", "alpha": 5.0}, *others], labels)
    assert found == pytest.approx(plain, rel=1e-5)


def test_under_dropout_they_do_not_and_that_costs(first_step, tmp_path):
    dropout = {"model__config_overrides": {"hidden_dropout_prob": 0.3}}
    weak, *_ = first_step([{"name": "r_drop", "alpha": 1e-6}], LABELS, output_dir=str(tmp_path / "weak"), **dropout)
    strong, *_ = first_step([{"name": "r_drop", "alpha": 5.0}], LABELS, **dropout)
    assert strong > weak + 1e-3
