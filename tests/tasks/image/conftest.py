"""Tiny image checkpoints of other kinds, and what the log says."""

from __future__ import annotations

import logging

import pytest
import torch

SMALL_TIMM = {
    "input_size": [3, 32, 32],
    "crop_pct": 0.9,
    "mean": [0.4] * 3,
    "std": [0.3] * 3,
    "interpolation": "bicubic",
}


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level("INFO", logger="sft_hf")
    return caplog


@pytest.fixture(scope="session")
def resnet_checkpoint(tmp_path_factory):
    """A tiny ResNet whose processor resizes and crops, as ConvNeXt's."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.9).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def timm_checkpoint(tmp_path_factory):
    """A tiny timm CNN as Transformers saves it, its preprocessing in config.json."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_efficientnet", num_labels=5, pretrained_cfg=SMALL_TIMM)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return folder
