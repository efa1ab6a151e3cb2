"""Frozen parts: which they are, that nothing of them moves, and that a run with them is resumed to the bit."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly, interrupted_and_resumed, prepared, weights
from tiers import quick

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.models.freezing import backbone_names, evaluate_frozen_parts, matching

LOWER = ["bert.embeddings", "bert.encoder.layer.0"]

pytestmark = pytest.mark.usefixtures("own_cache")


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("bert.embeddings", lambda name: name.startswith("bert.embeddings.")),
        ("bert.encoder.layer.[01]", lambda name: name.startswith("bert.encoder.layer.")),
        ("*.bias", lambda name: name.endswith(".bias")),
        ("backbone", lambda name: name.startswith("bert.")),
    ],
)
def test_patterns_name_parameters_and_modules(make_recipe, pattern, expected):
    model = prepared(make_recipe()).training.model
    assert matching(model, pattern) == [name for name, _ in model.named_parameters() if expected(name)]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["bert.encoder.layers.0"], "did you mean bert.encoder.layer.0"),
        (["bckbone"], "did you mean backbone"),
        (["*"], "nothing is left to train"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_a_mistake(make_recipe, patterns, words):
    recipe = make_recipe(train__freeze=patterns)
    with pytest.raises(RecipeError, match=words) as caught:
        briefly(recipe)
    assert "\n" not in str(caught.value)
    assert not Path(recipe.output_dir).exists()


def test_the_head_of_timm_is_its_classifier_and_whisper_has_none(make_image_recipe, make_speech_recipe, cnn_checkpoint):
    model = prepared(make_image_recipe(model__name=str(cnn_checkpoint))).training.model
    left = {name for name, _ in model.named_parameters()} - set(backbone_names(model))
    assert left == {"timm_model.classifier.weight", "timm_model.classifier.bias"}
    with pytest.raises(RecipeError, match=r"no head apart from its backbone.*model\.encoder"):
        prepared(make_speech_recipe(train__freeze=["backbone"]))


def test_weights_that_the_checkpoint_had_not_are_no_backbone(make_recipe, checkpoint, tmp_path):
    from transformers import AutoTokenizer, BertModel

    BertModel.from_pretrained(checkpoint, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "bare")
    model = prepared(make_recipe(model__name=str(tmp_path / "bare"))).training.model
    left = {name for name, _ in model.named_parameters()} - set(backbone_names(model))
    assert left == {f"{part}.{kind}" for part in ("classifier", "bert.pooler.dense") for kind in ("weight", "bias")}


def test_frozen_parameters_have_no_optimizer_state_and_are_counted(make_recipe):
    result = briefly(make_recipe(train__freeze=["backbone"], train__max_steps=2))
    model = result.metrics["model"]
    assert model["num_trainable_parameters"] == 3 * 32 + 3 < model["num_parameters"]
    saved = load_file(next((result.output_dir / "checkpoints").glob("step-*")) / "optimizer.safetensors")
    assert {name.partition(".")[0] for name in saved} == {"0", "1"}


@pytest.mark.parametrize(
    ("evaluation", "cache"),
    quick([("evaluation", "auto"), ("none", "off")], list(product(("evaluation", "none"), ("auto", "off")))),
)
def test_batch_norm_of_a_frozen_backbone_stands_still(make_image_recipe, cnn_checkpoint, tmp_path, evaluation, cache):
    changes = {"model__name": str(cnn_checkpoint), "task__augmentation": evaluation, "train__frozen_features": cache}
    folders = [tmp_path / name for name in "ab"]
    for folder, steps in zip(folders, (1, 3), strict=True):
        briefly(
            make_image_recipe(output_dir=str(folder), train__max_steps=steps, train__freeze=["backbone"], **changes)
        )
    classifier = {"timm_model.classifier.weight", "timm_model.classifier.bias"}
    assert moved(weights(folders[0]), weights(folders[1])) == classifier


def test_frozen_parts_have_no_dropout_and_stay_in_evaluation_mode(make_recipe, monkeypatch):
    modes = []
    step = loop.train_step

    def watched(training, *arguments):
        modes.append({name: module.training for name, module in training.model.named_modules()})
        return step(training, *arguments)

    monkeypatch.setattr(loop, "train_step", watched)
    briefly(make_recipe(train__freeze=LOWER, eval__eval_steps=2, train__max_steps=4))
    assert len(modes) == 4 and all(mode == modes[0] for mode in modes)  # evaluations in between changed nothing
    assert not modes[0]["bert.embeddings.dropout"] and not modes[0]["bert.encoder.layer.0.output.dropout"]
    assert modes[0]["bert.encoder.layer.1.output.dropout"] and modes[0]["dropout"] and modes[0]["bert"]


def test_only_what_is_frozen_is_put_in_evaluation_mode():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5))
    model[1].requires_grad_(False)
    model.train()
    evaluate_frozen_parts(model)
    assert [module.training for module in model] == [True, False, True]


KINDS = ["text", "text_probe", "image", "speech"]


FROZEN = [(kind, cache) for kind in KINDS for cache in ("auto", "off")]


@pytest.mark.parametrize(("kind", "cache"), quick([("text", "auto"), ("image", "auto"), ("speech", "off")], FROZEN))
def test_a_resumed_run_with_frozen_parts_has_the_same_bits(
    make_recipe, make_image_recipe, make_speech_recipe, tmp_path, kind, cache
):
    make, changes = {
        "text": (make_recipe, {"train__freeze": LOWER}),
        "text_probe": (make_recipe, {"train__freeze": ["backbone"]}),
        "image": (make_image_recipe, {"train__freeze": ["backbone"], "task__augmentation": "evaluation"}),
        "speech": (make_speech_recipe, {"train__freeze": ["model.encoder"]}),
    }[kind]
    changes |= {"train__frozen_features": cache, "train__max_steps": 8, "checkpoint__save_steps": 3}
    whole = briefly(make(output_dir=str(tmp_path / "whole"), **changes))
    stop_at = whole.metrics["train"]["num_steps"] // 2
    resumed = interrupted_and_resumed(make(output_dir=str(tmp_path / "cut"), **changes), stop_at)
    assert not moved(weights(whole.output_dir), weights(resumed.output_dir))
    rows = [(result.output_dir / "predictions.jsonl").read_text() for result in (whole, resumed)]
    assert rows[0] == rows[1]
