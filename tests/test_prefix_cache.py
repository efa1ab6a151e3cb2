"""The cache of what a frozen lower part computes: the same run with it, cold, warm, resumed or on two processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sft_hf import prefix_cache, process
from sft_hf.errors import SftError
from sft_hf.freezing import evaluate_frozen_parts
from sft_hf.prefix_store import INDEX, PrefixStore
from sft_hf.prefix_trace import Declined, find_prefix, stack_like
from sft_hf.run import _Run, finetune
from sft_hf.run_folder import RunFolder

LOWER = ["bert.embeddings", "bert.encoder.layer.0"]
NO_SPEC_AUGMENT = {"task__mask_time_prob": 0.0, "task__mask_feature_prob": 0.0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefix"


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


KINDS = ["bert_probe", "bert_lower", "vit_probe", "timm_probe", "whisper_encoder", "wav2vec2_probe"]


def run_of(recipe):
    run = _Run(recipe, RunFolder(Path(recipe.output_dir)), process.build_accelerator("no", 1))
    run.prepare()
    run.training.model.train()
    evaluate_frozen_parts(run.training.model)
    return run


def prefix_of(recipe):
    run = run_of(recipe)
    examples = run.training.data.examples
    batch = run.task.collate([examples.features[row] for row in (0, 1)])
    return find_prefix(run.training.model, lambda: run.task.losses(run.training.model, batch))


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def steps(folder):
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


# --- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "modules", "consumers"),
    [
        ("bert_probe", {"bert"}, {"dropout"}),
        ("bert_lower", {"bert.embeddings", "bert.encoder.layer.0"}, {"bert.encoder.layer.1"}),
        ("vit_probe", {"vit"}, {"classifier"}),
        ("whisper_encoder", {"model.encoder"}, {"model.decoder"}),
        ("wav2vec2_probe", {"wav2vec2"}, {"lm_head"}),
    ],
)
def test_the_cut_is_where_the_trained_part_begins(kinds, kind, modules, consumers):
    found = prefix_of(kinds[kind]())
    assert set(found.modules) == modules
    assert {cut.module for cut in found.cuts} == consumers
    assert found.tensors == 1


def test_timm_is_cut_before_its_classifier(kinds):
    found = prefix_of(kinds["timm_probe"]())
    assert [cut.module for cut in found.cuts] == ["timm_model.classifier"]
    assert "timm_model.blocks" in found.modules
    assert "timm_model.global_pool" in set(found.skipped) - set(found.modules)


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (["bert.embeddings"], "only embeddings"),
        (["bert.encoder.layer.0"], "nothing below"),
        (["bert.embeddings", "bert.encoder.layer.0.output.dense"], "only embeddings"),  # a skip connection around it
    ],
)
def test_where_nothing_can_be_cut_off_the_reason_is_told(make_recipe, patterns, reason):
    with pytest.raises(Declined, match=reason):
        prefix_of(make_recipe(train__freeze=patterns))


def test_frozen_word_vectors_are_not_worth_a_cache():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.embeddings(ids).mean(1))

    model = Model()
    model.embeddings.weight.requires_grad_(False)
    with pytest.raises(Declined, match="only embeddings"):
        find_prefix(model, lambda: model(torch.tensor([[1, 2], [3, 4]])))


def test_a_skip_connection_around_a_trained_layer_is_kept_whole():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.trained, self.norm = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            y = self.frozen(x)
            return self.norm(y + self.trained(y))

    model = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), Block(), torch.nn.Linear(4, 2))
    found = find_prefix(model, lambda: model(torch.ones(2, 4)))
    assert found.modules == ("0",)
    assert [cut.module for cut in found.cuts] == ["1"]
    with pytest.raises(Declined, match="woven"):
        block = Block()
        find_prefix(block, lambda: block(torch.ones(2, 4)))


# --- what comes of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_same_cold_and_warm_and_close_to_one_without(kinds, kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    folders = {name: str(tmp_path / name) for name in ("cold", "warm", "without")}
    sgd = {"optim__name": "sgd"}  # Adam makes steps as large as others of gradients that are nothing but rounding
    finetune(kinds[kind](output_dir=folders["cold"], **sgd))
    assert "computed now" in caplog.text and " 0 of them" not in caplog.text
    caplog.clear()
    finetune(kinds[kind](output_dir=folders["warm"], **sgd))
    assert " 0 of them computed now" in caplog.text
    finetune(kinds[kind](output_dir=folders["without"], train__prefix_cache="off", **sgd))
    cold, warm, without = (weights(folder) for folder in folders.values())
    assert same(cold, warm)
    assert steps(folders["cold"]) == steps(folders["warm"])
    assert all(torch.allclose(cold[name], without[name], atol=1e-5) for name in cold)
    losses = [[line["loss"] for line in steps(folders[name]) if "loss" in line] for name in ("cold", "without")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
