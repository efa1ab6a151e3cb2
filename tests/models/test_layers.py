"""Layers by structure: what is below, in and above them, for every kind of architecture."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as hf

from sft_hf.core.errors import RecipeError
from sft_hf.models.blocks import block_stacks
from sft_hf.models.freezing import head_names, note_new_weights, set_modes, set_trained
from sft_hf.models.layers import layer_depths, layer_stacks, names_at

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = {"vocab_size": 30, "pad_token_id": 0}
WAVE = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (5, 8), "num_feat_extract_layers": 2}
WAVE |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 12}


def image(config):
    return hf.AutoModelForImageClassification.from_config(config)


def text(config):
    return hf.AutoModelForSequenceClassification.from_config(config)


def speech(**changes):
    return hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SMALL, **WAVE, **changes))


def timm(name):
    return image(hf.TimmWrapperConfig(architecture=name, num_labels=3))


MODELS = {  # model, layers, {pattern of names: depth}; what no pattern fits is below the layers
    "bert": (
        lambda: text(hf.BertConfig(**SMALL, **WORDS)),
        3,
        {r"bert\.encoder\.layer\.(\d)": None, r"bert\.pooler": 3, "classifier": 4},
    ),
    "distilbert": (
        lambda: text(hf.DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=16, **WORDS)),
        3,
        {r"distilbert\.transformer\.layer\.(\d)": None, "pre_classifier": 4, "classifier": 4},
    ),
    "deberta": (
        lambda: text(hf.DebertaV2Config(relative_attention=True, position_buckets=4, **SMALL, **WORDS)),
        3,
        {r"deberta\.encoder\.layer\.(\d)": None, "pooler": 4, "classifier": 4},  # rel_embeddings come after the layers
    ),
    "vit": (
        lambda: image(hf.ViTConfig(image_size=16, patch_size=8, **SMALL)),
        3,
        {r"vit\.layers\.(\d)": None, r"vit\.layernorm": 3, "classifier": 4},
    ),
    "swin": (  # a block is a layer
        lambda: image(hf.SwinConfig(image_size=16, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=2)),
        3,
        {
            r"swin\.encoder\.layers\.0\.blocks\.0": 1,
            r"swin\.encoder\.layers\.0\.downsample": 2,  # with the block above, as in timm
            r"swin\.encoder\.layers\.1\.blocks\.0": 2,
            r"swin\.encoder\.layers\.1\.blocks\.1": 3,
            r"swin\.layernorm": 3,
            "classifier": 4,
        },
    ),
    "convnext": (
        lambda: image(hf.ConvNextConfig(depths=[1, 2], hidden_sizes=[8, 8], num_stages=2)),
        3,
        {
            r"convnext\.encoder\.stages\.0\.layers\.0": 1,
            r"convnext\.encoder\.stages\.1\.downsampling_layer": 2,
            r"convnext\.encoder\.stages\.1\.layers\.0": 2,
            r"convnext\.encoder\.stages\.1\.layers\.1": 3,
            r"convnext\.layernorm": 3,
            "classifier": 4,
        },
    ),
    "wav2vec2": (
        speech,
        3,
        {r"wav2vec2\.encoder\.layers\.(\d)": None, "lm_head": 4},
    ),
    "wav2vec2_stable": (
        lambda: speech(do_stable_layer_norm=True, feat_extract_norm="layer", add_adapter=True),
        3,
        {
            r"wav2vec2\.encoder\.layers\.(\d)": None,
            r"wav2vec2\.encoder\.layer_norm": 3,
            r"wav2vec2\.adapter": 3,
            "lm_head": 4,
        },
    ),
    "timm_vit": (
        lambda: timm("test_vit"),
        6,
        {r"timm_model\.blocks\.(\d)": None, r"timm_model\.norm": 6, r"timm_model\.head": 7},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_depths_follow_the_structure(name):
    make, layers, patterns = MODELS[name]
    model = make()
    expected = {}
    for parameter, _ in model.named_parameters():
        found = next(
            ((match, depth) for pattern, depth in patterns.items() if (match := re.match(pattern, parameter))), None
        )
        if found is None:
            expected[parameter] = 0
        else:
            match, depth = found
            expected[parameter] = int(match[1]) + 1 if depth is None else depth
    assert layer_depths(model) == expected
    assert {depth for depth in expected.values() if depth} == set(range(1, layers + 2))


@pytest.mark.parametrize("name", [*MODELS, "test_efficientnet"])
def test_a_layer_is_what_can_be_skipped(name):
    model = MODELS[name][0]() if name in MODELS else timm(name)
    depths = layer_depths(model)
    blocks = block_stacks(model)[0]
    for depth, (path, block) in enumerate(blocks, start=1):
        assert {depths[f"{path}.{inner}"] for inner, _ in block.named_parameters()} == {depth}
    assert len(blocks) == len(layer_stacks(model)[0].layers)


def test_where_timm_says_nothing_its_blocks_are_the_layers():
    with torch.device("meta"):
        model = timm("pit_ti_224")
    assert not hasattr(model.timm_model, "group_matcher")
    depths = layer_depths(model)
    assert max(depths.values()) == 13 and depths["timm_model.patch_embed.conv.weight"] == 0
    names = ("0.blocks.1", "1.pool", "1.blocks.0", "2.blocks.3")  # the stages have 2, 6 and 4 blocks
    for name, depth in zip(names, (2, 3, 3, 12), strict=True):
        inside = {value for key, value in depths.items() if key.startswith(f"timm_model.transformers.{name}.")}
        assert inside == {depth}


def test_timm_groups_the_blocks_of_its_cnns_itself():
    from timm.optim import param_groups_layer_decay

    model = timm("test_efficientnet")
    depths = layer_depths(model)
    top = max(depths.values())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in param_groups_layer_decay(model.timm_model, layer_decay=0.5):
        for parameter in group["params"]:
            assert 0.5 ** (top - depths[names[id(parameter)]]) == group["lr_scale"]
    assert depths["timm_model.conv_stem.weight"] == 0 and depths["timm_model.classifier.weight"] == top
    assert depths["timm_model.conv_head.weight"] == top - 1


def whisper(encoder_layers, decoder_layers):
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    ends |= {"suppress_tokens": None, "begin_suppress_tokens": None}
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            vocab_size=30, d_model=16, encoder_layers=encoder_layers, decoder_layers=decoder_layers, **heads, **ends
        )
    )


def test_encoder_and_decoder_are_each_counted_from_their_own_top():
    depths = layer_depths(whisper(3, 1))
    assert {depths[f"model.encoder.layers.{layer}.fc1.weight"] for layer in range(3)} == {1, 2, 3}
    assert depths["model.encoder.conv1.weight"] == 0 and depths["model.encoder.layer_norm.weight"] == 3
    assert depths["model.decoder.layers.0.fc1.weight"] == 3 and depths["model.decoder.layer_norm.weight"] == 3
    assert depths["model.decoder.embed_tokens.weight"] == 2  # right below the decoder's only layer
    assert max(depths.values()) == 3  # there is no head
    encoder, decoder = layer_stacks(whisper(3, 1))
    assert (len(encoder.layers), len(decoder.layers)) == (3, 1)


def test_new_weights_are_in_the_head():
    model = MODELS["bert"][0]()
    note_new_weights(model, ["bert.pooler.dense.weight", "bert.pooler.dense.bias"])
    depths = layer_depths(model)
    assert depths["bert.pooler.dense.weight"] == depths["classifier.weight"] == 4
    assert set(head_names(model)) == {name for name, depth in depths.items() if depth == 4}


def test_a_model_without_a_part_of_the_base_models_name_has_its_new_weights_for_a_head():
    """CLIP's classifier of images holds the vision model alone, beside its classifier."""
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    model = image(hf.CLIPConfig(vision_config=vision, text_config={**SMALL, **WORDS}, num_labels=3))
    with pytest.raises(RecipeError, match="cannot identify the layers of CLIPForImageClassification"):
        layer_depths(model)  # as good as all is head
    note_new_weights(model, ["classifier.weight", "classifier.bias"])
    assert head_names(model) == ["classifier.weight", "classifier.bias"]
    assert set(layer_depths(model).values()) == {0, 1, 2, 3, 4}


def test_a_model_without_layers_is_a_mistake_of_one_line():
    with pytest.raises(RecipeError, match="cannot identify the layers of Linear") as caught:
        layer_depths(torch.nn.Linear(2, 2))
    assert "\n" not in str(caught.value)


def test_names_come_by_depth_from_the_top():
    assert names_at({"a": 0, "b": 2, "c": 2, "d": 1}, ["a", "b", "c"]) == [["b", "c"], ["a"]]


def test_parts_that_are_frozen_for_a_while_run_as_in_evaluation():
    model = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5)), torch.nn.Linear(2, 2)
    )
    model.eval()
    set_trained(model, ["0.0.weight", "0.0.bias"], False)
    assert [module.training for module in model.modules()] == [True, False, False, False, True]
    assert not model[0][0].weight.requires_grad
    set_trained(model, ["0.0.weight", "0.0.bias"], True)
    assert all(module.training for module in model.modules()) and model[0][0].weight.requires_grad
    model.eval()
    set_modes(model)
    assert model.training
