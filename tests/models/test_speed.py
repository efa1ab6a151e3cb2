"""Less memory or time, and the same mathematics."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sft_hf import finetune
from sft_hf.core.errors import RecipeError


def trained(recipe):
    result = finetune(recipe)
    return load_file(result.output_dir / "model" / "model.safetensors"), result.metrics


@pytest.mark.parametrize("task", ["text", "image", "speech"])
def test_activations_that_are_computed_again_give_the_same_weights(
    task, make_recipe, make_image_recipe, make_speech_recipe, tmp_path
):
    make = {"text": make_recipe, "image": make_image_recipe, "speech": make_speech_recipe}[task]
    plain, _ = trained(make(train__max_steps=3))
    again, _ = trained(make(train__max_steps=3, train__gradient_checkpointing=True, output_dir=str(tmp_path / "again")))
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_activations_really_are_computed_again(make_recipe, monkeypatch):
    calls = []
    import torch.utils.checkpoint as recomputation

    real = recomputation.checkpoint
    monkeypatch.setattr(recomputation, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    import transformers.modeling_utils as modeling

    monkeypatch.setattr(modeling, "checkpoint", recomputation.checkpoint)
    finetune(make_recipe(train__max_steps=1, train__gradient_checkpointing=True))
    assert calls


def test_a_model_that_cannot_is_named(make_recipe, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} {index}.5 1.0\n" for index, word in enumerate("goal bank bread the".split())))
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing: WordEmbedding"):
        finetune(make_recipe(model={"name": str(vectors)}, train__gradient_checkpointing=True))


@pytest.mark.long
def test_a_compiled_model_is_saved_under_the_same_names(make_recipe, tmp_path):
    # Not Adam, which makes a step of full size of a gradient that is nothing but noise.
    off = {
        "optim__name": "sgd",
        "model__config_overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    plain, metrics = trained(make_recipe(train__max_steps=2, **off))
    compiled, again = trained(
        make_recipe(train__max_steps=2, train__torch_compile="on", output_dir=str(tmp_path / "compiled"), **off)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=0, atol=1e-4, msg=name)
    assert json.dumps(metrics["test"]["accuracy"]) == json.dumps(again["test"]["accuracy"])
