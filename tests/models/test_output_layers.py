"""The layer that gives a model's outputs: found in models of many kinds, and rescaled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    ConvNextConfig,
    LlamaConfig,
    RobertaConfig,
    TimmWrapperConfig,
)

from sft_hf.core.errors import CheckpointError
from sft_hf.models.output_layers import find_output_layers, have_bias, rescale, start_anew

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "max_position_embeddings": 32,
}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40, "eos_token_id": 7}
TEXTS = {"input_ids": torch.tensor([[2, 5, 6, 7]])}
TIMM = {"pretrained_cfg": {"input_size": [3, 32, 32]}}


def text_model(config, outputs):
    config.num_labels = outputs
    return AutoModelForSequenceClassification.from_config(config), TEXTS


def image_model(config, outputs):
    config.num_labels = outputs
    return AutoModelForImageClassification.from_config(config), {"pixel_values": torch.rand(1, 3, 32, 32)}


MAKERS = {
    "bert": lambda n: text_model(BertConfig(**SMALL), n),
    "roberta": lambda n: text_model(RobertaConfig(**SMALL), n),
    "llama": lambda n: text_model(LlamaConfig(**SMALL, num_key_value_heads=2), n),
    "bart": lambda n: text_model(BartConfig(**BART, pad_token_id=0), n),
    "convnext": lambda n: image_model(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4), n),
    "timm": lambda n: image_model(TimmWrapperConfig(architecture="test_vit", **TIMM, model_args={"img_size": 32}), n),
}


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_outputs_are_rescaled_by_the_weights(name, outputs):
    torch.manual_seed(0)
    model, inputs = MAKERS[name](outputs)
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    names = find_output_layers(model, outputs, lambda: model(**inputs).logits)
    assert model.training and all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    model.eval()
    scale = torch.tensor([3.0, 0.5], dtype=torch.float64)[:outputs]
    shift = torch.tensor([1000.0, -2.0], dtype=torch.float64)[:outputs] * have_bias(model, names)
    with torch.no_grad():
        expected = model(**inputs).logits * scale + shift
        rescale(model, names, scale, shift)
        torch.testing.assert_close(model(**inputs).logits.double(), expected, rtol=1e-5, atol=1e-4)
    assert have_bias(model, names) == (name != "llama")


class TwoHeads(nn.Module):
    """Answers with the mean of two heads, as distilled image models do."""

    def __init__(self, squash=False):
        super().__init__()
        self.first, self.second, self.squash = nn.Linear(3, 1), nn.Linear(3, 1), squash

    def forward(self, x):
        mean = (self.first(x) + self.second(x)) / 2
        return torch.tanh(mean) if self.squash else mean


def test_heads_that_are_averaged_are_rescaled_together():
    model, row = TwoHeads(), torch.rand(1, 3)
    names = find_output_layers(model, 1, lambda: model(row))
    assert names == ["first", "second"]
    expected = model(row) * 4 + 10
    rescale(model, names, torch.tensor([4.0]).double(), torch.tensor([10.0]).double())
    torch.testing.assert_close(model(row), expected)


def test_outputs_that_are_no_linear_layers_are_refused():
    model = TwoHeads(squash=True)
    with pytest.raises(CheckpointError, match=r"TwoHeads.*linear"):
        find_output_layers(model, 1, lambda: model(torch.rand(1, 3)))
    with pytest.raises(CheckpointError, match="linear"):
        find_output_layers(nn.Identity(), 1, lambda: torch.zeros(1, 1))


def test_a_head_of_another_task_starts_anew():
    model, inputs = MAKERS["bert"](2)
    names = find_output_layers(model, 2, lambda: model(**inputs).logits)
    before = model.classifier.weight.clone()
    nn.init.ones_(model.classifier.bias)
    start_anew(model, names)
    assert not torch.equal(before, model.classifier.weight) and not model.classifier.bias.any()
    assert "classifier.weight" in model.new_weights
