"""Stochastic depth: the linear rule, the branch of each row; evaluation, saving and recomputation see none of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSpeechSeq2Seq

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import TrainSection
from sft_hf.models.speed import speed_up
from sft_hf.techniques.regularization.stochastic_depth import (
    StochasticDepth,
    StochasticDepthSettings,
    drop_probability,
    thinned,
)


def apply(model, probability):
    settings = StochasticDepthSettings(probability=probability)
    StochasticDepth(settings, SimpleNamespace()).prepare_model(model)
    return model


def test_the_rule_is_linear_and_survival_that_of_the_paper():
    for layers, last in ((12, 0.5), (3, 0.1)):
        for layer in range(1, layers + 1):
            survival = 1 - layer / layers * (1 - (1 - last))  # equation 4, with p_L the survival of the last layer
            assert drop_probability(layer, layers, last) == pytest.approx(1 - survival)


def test_rows_keep_their_branch_scaled_or_skip_it():
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 5, 3, 2))
    kept, p = np.array([True, False, True, True, False]), 0.4
    found = thinned(torch.tensor(before), torch.tensor(after), torch.tensor(kept), p)
    for row in range(5):
        branch = after[row] - before[row]
        expected = before[row] + branch / (1 - p) if kept[row] else before[row]
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-12)


def test_on_average_it_is_the_whole_block():
    torch.manual_seed(0)
    before, after = torch.zeros(20_000, 1), torch.ones(20_000, 1)
    kept = torch.rand(20_000) >= 0.3
    assert thinned(before, after, kept, 0.3).mean() == pytest.approx(1, abs=0.02)


class Block(nn.Module):
    """Adds one, and returns more than its hidden states."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, hidden_states, extra=None):
        return hidden_states + 1, extra


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(4))

    def forward(self, states):
        for layer in self.layers:
            states, _ = layer(hidden_states=states)
        return states


def test_upper_layers_are_skipped_in_proportion_to_their_depth_and_rows_draw_for_themselves():
    model = apply(Stack(), 0.5).train()
    torch.manual_seed(0)
    skipped = []
    states = torch.zeros(4000, 2)
    for layer in model.layers:
        after = layer(hidden_states=states)[0]
        skipped.append(float((after == states).all(dim=1).float().mean()))
        states = after
    assert skipped == pytest.approx([0.125, 0.25, 0.375, 0.5], abs=0.03)


def test_in_evaluation_and_in_frozen_layers_nothing_changes():
    model = apply(Stack(), 0.5).eval()
    assert (model(torch.zeros(50, 2)) == 4).all()
    model.train()
    model.layers[3].eval()  # as `train.freeze` leaves it
    before = torch.zeros(50, 2)
    assert (model.layers[3](before)[0] == 1).all()
    assert not (model.layers[2](before)[0] == 1).all()


def test_nothing_of_it_is_saved_and_recomputed_activations_give_the_same_gradient(image_checkpoint):
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_pretrained(image_checkpoint)
        names = set(model.state_dict())
        apply(model, 0.5).train()
        assert set(model.state_dict()) == names
        speed_up(model, TrainSection(gradient_checkpointing=recompute), torch.device("cpu"))
        torch.manual_seed(1)
        model(pixel_values=pixels).logits.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_whisper_skips_in_encoder_and_decoder(whisper_checkpoint):
    model = apply(AutoModelForSpeechSeq2Seq.from_pretrained(whisper_checkpoint), 0.5).train()
    for layer in (model.model.encoder.layers[0], model.model.decoder.layers[0]):
        torch.manual_seed(0)
        states = torch.randn(40, 3, 32)
        output = layer(states, None)
        same = (output[0] if isinstance(output, tuple) else output) == states
        assert 5 < int(same.all(dim=(1, 2)).sum()) < 35


def test_a_model_without_layers_is_refused():
    with pytest.raises(RecipeError, match="stochastic_depth: Sequential has no repeated layers to skip"):
        apply(nn.Sequential(nn.Linear(2, 2)), 0.5)
