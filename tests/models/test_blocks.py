"""Finding the repeated layers of an architecture."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import transformers as hf
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


def config(kind, **settings):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 30}
    return kind(**{**sizes, **settings})


WAVE = {"conv_dim": (8, 8), "conv_kernel": (8, 8), "conv_stride": (4, 4), "num_feat_extract_layers": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "num_decoder_layers": 1}


@pytest.mark.parametrize(
    ("make", "expected"),
    [  # T5's block has a list `layer`, of parts
        (lambda: hf.T5ForConditionalGeneration(config(hf.T5Config, **T5)), ["encoder.block.#", "decoder.block.#"]),
        (lambda: hf.AlbertModel(config(hf.AlbertConfig)), ["encoder.albert_layer_groups.#.albert_layers.#"]),
        # attention and feed-forward in lists of their own, without what leads around them
        (lambda: hf.XLMModel(hf.XLMConfig(emb_dim=16, n_heads=2, n_layers=2)), []),
        (  # convolutions over the waveform, all of one class in this form
            lambda: hf.Wav2Vec2Model(config(hf.Wav2Vec2Config, num_hidden_layers=2, feat_extract_norm="layer", **WAVE)),
            ["encoder.layers.#"],
        ),
        (  # all stages' embeddings in a list
            lambda: hf.PvtModel(
                hf.PvtConfig(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, image_size=64)
            ),
            ["encoder.block.#.#"],
        ),
        (lambda: timm.create_model("edgenext_xx_small"), ["stages.#.blocks.#"]),  # blocks of two classes
        (lambda: timm.create_model("twins_svt_small"), ["blocks.#.#"]),  # and not its patch_embeds
    ],
    ids=["t5", "albert", "xlm", "wav2vec2", "pvt", "edgenext", "twins"],
)
def test_lists_of_other_things_and_parts_of_layers_are_no_blocks(make, expected):
    with torch.device("meta"):
        model = make()
    found = [{re.sub(r"\d+", "#", name) for name in stack} for stack in names(model)]
    assert found == [{name} for name in expected]


def test_a_model_without_repeated_layers_has_none():
    assert names(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []
