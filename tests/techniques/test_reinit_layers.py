"""Re-initialised layers: which they are, what they hold then, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import prepared
from tiers import long

from sft_hf.core.errors import RecipeError
from sft_hf.jobs.finetune import finetune
from sft_hf.models.freezing import head_names


def state_of(recipe):
    """The model as training begins with it, and its state dict."""
    run = prepared(recipe)
    return run.training.model, {name: tensor.clone() for name, tensor in run.training.model.state_dict().items()}


def changed(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, ["bert.encoder.layer.1", "bert.pooler"]),
        long(({"pooler": False}, ["bert.encoder.layer.1"])),
        long(({"num_layers": 0}, ["bert.pooler"])),
        ({"num_layers": 2}, ["bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler"]),
    ],
)
def test_the_top_layers_and_the_pooler_are_drawn_as_bert_draws_them(make_recipe, settings, parts):
    _, plain = state_of(make_recipe())
    model, found = state_of(make_recipe(techniques=[{"name": "reinit_layers", **settings}]))
    inside = {name for name in plain if name.startswith(tuple(f"{part}." for part in parts))}
    matrices = {name for name in inside if plain[name].ndim == 2}
    assert changed(plain, found) == matrices  # biases of the checkpoint were zero and gains one, as they are again
    drawn = torch.cat([found[name].flatten() for name in sorted(matrices)])
    assert abs(float(drawn.mean())) < 0.01 and float(drawn.std()) == pytest.approx(0.1, rel=0.05)  # initializer_range
    assert inside <= set(head_names(model))  # new, like the classifier, which has the same numbers as ever


def test_the_same_seed_draws_the_same_and_another_one_others(make_recipe):
    first, again, other = (state_of(make_recipe(techniques=["reinit_layers"], seed=seed))[1] for seed in (1, 1, 2))
    assert not changed(first, again)
    assert "bert.encoder.layer.1.output.dense.weight" in changed(first, other)
    query, key = (first[f"bert.encoder.layer.1.attention.self.{name}.weight"] for name in ("query", "key"))
    assert not torch.equal(query, key)


def test_norms_and_statistics_of_timm_begin_anew(make_image_recipe, tmp_path):
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = TimmWrapperConfig(
        architecture="test_efficientnet", num_labels=5, pretrained_cfg={**shape, "interpolation": "bilinear"}
    )
    model = AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
            tensor.add_(0.3)
    model.save_pretrained(tmp_path / "timm")
    options = {"model__name": str(tmp_path / "timm")}
    _, plain = state_of(make_image_recipe(**options))
    _, found = state_of(make_image_recipe(techniques=["reinit_layers"], **options))
    moved = {name.rpartition(".")[0] for name in changed(plain, found)}
    assert {"timm_model.conv_head", "timm_model.bn2"} <= moved
    assert all(name.startswith(("timm_model.blocks.4.", "timm_model.conv_head", "timm_model.bn2")) for name in moved)
    assert (found["timm_model.bn2.running_mean"] == 0).all() and (found["timm_model.bn2.weight"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"num_layers": 3}, "reinit_layers: num_layers: Bert.* has 2 layers"),
        ({"train__freeze": ["backbone"]}, {}, "reinit_layers: bert.encoder.layer.1.* would stay random"),
    ],
)
def test_layers_that_are_not_there_or_frozen_are_a_mistake_of_one_line(make_recipe, changes, settings, words):
    recipe = make_recipe(techniques=[{"name": "reinit_layers", **settings}], **changes)
    with pytest.raises(RecipeError, match=words) as caught:
        finetune(recipe)
    assert "\n" not in str(caught.value)
    assert not Path(recipe.output_dir).exists()
