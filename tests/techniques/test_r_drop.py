"""R-Drop: the paper's equation by hand, two different passes, and a model without dropout that it leaves alone."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from tiers import long
from torch import nn
from torch.nn import functional

from sft_hf.engine.technique_stack import cross_entropy
from sft_hf.tasks.base import Items
from sft_hf.techniques.base import LossParts, TrainBatch
from sft_hf.techniques.regularization.r_drop import RDrop, agreeing, divergence
from sft_hf.techniques.regularization.settings import RDropSettings

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


@pytest.mark.parametrize("others", [long([]), ["mixup"]], ids=["alone", "of mixtures"])
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


def wrapped(items_of, alpha=0.7):
    """R-Drop's loss over a task that says of a batch what `items_of` says."""
    task = SimpleNamespace(items=items_of)
    technique = RDrop(RDropSettings(alpha=alpha), None)
    return technique.wrap_loss(None, LossParts(task, cross_entropy))


def test_the_gradient_goes_through_both_passes():
    first, second = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 2])

    def items_of(model, batch):
        return Items(torch.cat([first, second]), batch["labels"], torch.arange(6), 6)

    wrapped(items_of)(None, TrainBatch({"labels": labels})).sum().backward()
    found = first.grad.clone(), second.grad.clone()
    first.grad = second.grad = None
    whole = (
        functional.cross_entropy(first, labels, reduction="sum")
        + functional.cross_entropy(second, labels, reduction="sum")
    ) / 2 + 0.35 * divergence(first, second).sum()
    whole.backward()
    torch.testing.assert_close(found, (first.grad, second.grad))


def test_tokens_of_transcripts_stay_with_their_rows():
    """Two rows of two and three tokens: each row's loss is the sum over its own."""
    first, second, tokens = torch.randn(5, 6), torch.randn(5, 6), torch.tensor([4, 0, 2, 2, 1])

    def items_of(model, batch):
        rows = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
        return Items(torch.cat([first, second]), tokens.repeat(2), rows, 4)

    found = wrapped(items_of)(None, TrainBatch({"labels": torch.zeros(2)}))
    likelihoods = [functional.cross_entropy(logits, tokens, reduction="none") for logits in (first, second)]
    each = sum(likelihoods) / 2 + 0.35 * divergence(first, second)
    torch.testing.assert_close(found, torch.stack([each[:2].sum(), each[2:].sum()]))


def test_batch_norm_counts_a_step_once():
    norm = nn.BatchNorm1d(3)
    plain = nn.BatchNorm1d(3)
    inputs = torch.randn(4, 3)
    plain(inputs)
    wrapped(lambda model, batch: Items(model(batch["x"]), batch["labels"], torch.arange(8), 8))(
        norm, TrainBatch({"x": inputs, "labels": torch.tensor([0, 1, 2, 0])})
    )
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    assert norm.num_batches_tracked == 1


def test_a_frozen_part_served_from_the_cache_gives_the_same_run(make_recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO", "sft_hf")
    options = {
        "techniques": ["r_drop"],
        "train__freeze": ["bert.embeddings", "bert.encoder.layer.0"],
        "train__max_steps": 2,
        "data__max_train_samples": 16,
        "optim__name": "sgd",
        "eval__baseline": "none",
    }
    cached = briefly(make_recipe(output_dir=str(tmp_path / "cached"), **options))
    assert "computed now" in caplog.text
    whole = briefly(make_recipe(output_dir=str(tmp_path / "whole"), train__frozen_features="off", **options))
    weights = [load_file(result.output_dir / "model" / "model.safetensors") for result in (cached, whole)]
    logs = [(result.output_dir / "log.jsonl").read_text().splitlines() for result in (cached, whole)]
    losses = [[line["loss"] for line in map(json.loads, log) if "learning_rate" in line] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[0].items())
