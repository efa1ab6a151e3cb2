"""Finding the repeated layers of an architecture."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from transformers import (
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from sft_hf.models.blocks import block_stacks


def names(model):
    return [[name for name, _ in stack] for stack in block_stacks(model)]


@pytest.mark.parametrize(
    ("fixture", "auto", "expected"),
    [
        ("checkpoint", AutoModelForSequenceClassification, [["bert.encoder.layer.0", "bert.encoder.layer.1"]]),
        ("image_checkpoint", AutoModelForImageClassification, [["vit.layers.0", "vit.layers.1"]]),
        ("whisper_checkpoint", AutoModelForSpeechSeq2Seq, [["model.encoder.layers.0"], ["model.decoder.layers.0"]]),
    ],
)
def test_encoders_and_decoders(fixture, auto, expected, request):
    assert names(auto.from_pretrained(request.getfixturevalue(fixture))) == expected


def test_of_wav2vec2_the_layers_and_not_the_convolutions(wav2vec2_checkpoint):
    found = names(AutoModelForCTC.from_pretrained(wav2vec2_checkpoint))
    assert all(name.startswith("wav2vec2.encoder.layers.") for name in found[-1])


def test_stages_are_one_stack_and_blocks_are_not_looked_into():
    with torch.device("meta"):
        sizes = {"depths": [2, 1], "hidden_sizes": [8, 16], "embedding_size": 8}
        resnet = ResNetForImageClassification(ResNetConfig(**sizes))
        swin = SwinForImageClassification(SwinConfig(depths=[2, 1], num_heads=[1, 1], embed_dim=8))
        blocks = names(timm.create_model("efficientnet_lite0"))
        layers = names(timm.create_model("resnet18"))
    stages = "resnet.encoder.stages"
    assert names(resnet) == [[f"{stages}.0.layers.0", f"{stages}.0.layers.1", f"{stages}.1.layers.0"]]
    stages = "swin.encoder.layers"
    assert names(swin) == [[f"{stages}.0.blocks.0", f"{stages}.0.blocks.1", f"{stages}.1.blocks.0"]]
    assert len(blocks[0]) == 16 and blocks[0][:2] == ["blocks.0.0", "blocks.1.0"] and len(blocks) == 1
    assert layers == [[f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]]


def test_a_model_without_repeated_layers_has_none():
    assert names(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []
