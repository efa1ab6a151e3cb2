"""Models for grey pictures or another size: processor, first layer and position embeddings follow."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.recipe.recipe import validate_recipe
from sft_hf.core.sources.sources import resolve
from sft_hf.models import image_inputs
from sft_hf.tasks.image.task import ImageClassification

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def vit(**changes):
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**SMALL, intermediate_size=16, image_size=16, patch_size=4, **changes))


def saved(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SQUARE = ViTImageProcessor(size={"height": 16, "width": 16})


def built(folder, **overrides):
    """The task and its model, for train rows of two labels."""
    from datasets import Dataset

    recipe = validate_recipe(
        {
            "task": {"name": "image_classification"},
            "model": {"name": str(folder), "config_overrides": overrides},
            "data": {"name": "unused"},
        },
        "test",
    )
    task = ImageClassification(recipe)
    source = resolve(str(folder))
    task.fit(Dataset.from_dict({"image": ["a", "b"], "label": ["x", "y"]}), "train", source)
    return task, task.build_model(source, recipe.model)


def answer(task, model, grey=120):
    from PIL import Image

    pixels = task.views(Image.new("RGB", (40, 30), (grey,) * 3), "eval")
    with torch.no_grad():
        return pixels, model.eval()(pixel_values=pixels[None]).logits


@pytest.mark.parametrize("size", [32, 8, [16, 32]])
def test_position_embeddings_follow_the_size(tmp_path, size):
    model = vit()
    with torch.no_grad():  # a plane, which interpolation keeps
        model.embeddings.position_embeddings[0, 1:] = torch.arange(4.0).repeat(4)[:, None]
    task, other = built(saved(tmp_path, model, SQUARE), image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    pixels, _ = answer(task, other)
    assert pixels.shape == (3, height, width)
    found = other.vit.embeddings.position_embeddings
    assert found.shape[1] == 1 + height * width // 16
    assert torch.equal(found[0, 0], model.embeddings.position_embeddings[0, 0])
    columns = found[0, 1:, 0].reshape(height // 4, width // 4)
    assert torch.allclose(columns, columns[:1].expand_as(columns), atol=1e-5) and (columns.diff(dim=1) > 0).all()
    assert "vit.embeddings.position_embeddings" not in other.new_weights


def test_the_same_size_changes_nothing(tmp_path):
    folder = saved(tmp_path, vit(), SQUARE)
    (_, first), (_, second) = built(folder), built(folder, image_size=16)
    assert all(torch.equal(a, b) for a, b in zip(first.vit.parameters(), second.vit.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("dino", BitImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})),
        ("resnet", ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.9)),
    ],
)
def test_a_processor_that_crops_follows(tmp_path, kind, processor):
    models = {
        "dino": lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=16, patch_size=4)),
        "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
    }
    folder = saved(tmp_path, models[kind](), processor)
    if kind == "resnet":  # has no such field
        with pytest.raises(RecipeError, match="image_size"):
            built(folder, image_size=32)
        return
    pixels, _ = answer(*built(folder, image_size=32))
    assert pixels.shape == (3, 32, 32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: vit(num_channels=1),
        lambda: ResNetModel(ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1])),
    ],
)
def test_a_model_of_one_channel(tmp_path, make):
    task, model = built(saved(tmp_path, make(), SQUARE))
    pixels, logits = answer(task, model)
    assert pixels.shape == (1, 16, 16) and logits.shape == (1, 2)
    assert torch.allclose(pixels, torch.tensor(2 * 120 / 255 - 1))
    drawn = task.views.drawn(np.full((40, 30, 3), 120, dtype=np.uint8), "train", (1, 2, 3))
    assert drawn.shape == (16, 16, 1) and torch.allclose(task.views.normalized(drawn), pixels[0, 0, 0])
    assert task.collate([{"view": "blank"}] * 2)["pixel_values"].shape == (2, 1, 16, 16)


def test_an_rgb_checkpoint_for_grey_answers_the_same_on_grey(tmp_path):
    folder = saved(tmp_path, vit(), SQUARE)
    logits = []
    for overrides in ({}, {"num_channels": 1}):
        task, model = built(folder, **overrides)
        model.classifier.load_state_dict(a_head())
        logits.append(answer(task, model)[1])
    assert torch.allclose(*logits, atol=1e-5)


def a_head():
    torch.manual_seed(2)
    return {"weight": torch.randn(2, 16), "bias": torch.randn(2)}


@pytest.mark.parametrize(
    ("make", "overrides", "error", "words"),
    [
        (lambda: vit(num_channels=4), {}, CheckpointError, ["4 channels", "3 (RGB) and 1 (grey)"]),
        (vit, {"image_size": "big"}, RecipeError, ["image_size", "'big'"]),
        (vit, {"image_size": -3}, RecipeError, ["image_size"]),
        (vit, {"image_size": 2}, RecipeError, ["image_size", "patch"]),
        (vit, {"num_channels": 7}, CheckpointError, ["7 channels"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, make, overrides, error, words):
    folder = saved(tmp_path, make(), SQUARE)
    with pytest.raises(error) as caught:
        built(folder, **overrides)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_processor_of_another_size_than_its_model_is_refused(tmp_path):
    folder = saved(tmp_path, vit(), ViTImageProcessor(size={"height": 24, "width": 24}))
    with pytest.raises(CheckpointError, match=r"24 x 24.*config_overrides"):
        built(folder)
    assert answer(*built(folder, image_size=24))[0].shape == (3, 24, 24)


def test_timms_preprocessing_becomes_grey():
    found = image_inputs.grey_preprocessing(
        {"mean": [0.1, 0.2, 0.3], "std": (1, 2, 3), "input_size": [3, 8, 8], "x": 1}
    )
    assert found == {"mean": [pytest.approx(0.2)], "std": [2], "input_size": [1, 8, 8], "x": 1}
    assert image_inputs.input_channels(SimpleNamespace(model_args={"in_chans": 1}), {}, "timm") == 1
