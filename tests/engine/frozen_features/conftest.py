"""Recipes with a frozen lower part, one for each way of using one, and a cache of the test's own."""

from __future__ import annotations

import pytest
import torch

LOWER = ["bert.embeddings", "bert.encoder.layer.0"]
NO_SPEC_AUGMENT = {"task__mask_time_prob": 0.0, "task__mask_feature_prob": 0.0}


@pytest.fixture(autouse=True)
def cache(own_cache):
    """Where the test's own frozen-feature cache is."""
    return own_cache / "frozen-features"


@pytest.fixture(scope="session")
def timm_checkpoint(tmp_path_factory):
    """A tiny timm CNN with batch norm whose statistics are not those it was built with."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    shape = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    config = TimmWrapperConfig(architecture="test_efficientnet", num_labels=5, pretrained_cfg=shape)
    model = AutoModelForImageClassification.from_config(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def kinds(make_recipe, make_image_recipe, make_speech_recipe, timm_checkpoint, wav2vec2_checkpoint, checkpoint):
    """Functions that make recipes with a frozen lower part, one for each way of using one."""
    images = {"task__augmentation": "evaluation", "train__freeze": ["backbone"]}
    return {
        "bert_probe": lambda **changes: make_recipe(**{"train__freeze": ["backbone"], **changes}),
        "bert_lower": lambda **changes: make_recipe(**{"train__freeze": LOWER, **changes}),
        "vit_probe": lambda **changes: make_image_recipe(**images | changes),
        "timm_probe": lambda **changes: make_image_recipe(**images | {"model__name": str(timm_checkpoint)} | changes),
        "whisper_encoder": lambda **changes: make_speech_recipe(**{"train__freeze": ["model.encoder"], **changes}),
        "wav2vec2_probe": lambda **changes: make_speech_recipe(
            **{"model__name": str(wav2vec2_checkpoint), "train__freeze": ["backbone"], **NO_SPEC_AUGMENT, **changes}
        ),
    }
