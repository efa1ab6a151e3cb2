"""Less memory or time, and the same mathematics."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from tiers import long
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.sections import TrainSection
from sft_hf.models import speed


def trained(recipe):
    result = briefly(recipe)
    return load_file(result.output_dir / "model" / "model.safetensors"), result.metrics


@pytest.mark.parametrize("task", ["text", long("image"), long("speech")])
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
    briefly(make_recipe(train__max_steps=1, train__gradient_checkpointing=True))
    assert calls


def test_a_model_that_cannot_is_named(make_recipe, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} {index}.5 1.0\n" for index, word in enumerate("goal bank bread the".split())))
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing: WordEmbedding"):
        briefly(make_recipe(model={"name": str(vectors)}, train__gradient_checkpointing=True))


class Watched(nn.Module):
    """A depthwise convolution, dropout and softmax; remembers which function modes surround its forward pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
        self.modes = None

    def forward(self, x):
        self.modes = [type(mode).__module__ for mode in _get_current_function_mode_stack()]
        return nn.functional.dropout(self.conv(x), 0.5).softmax(1)


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [("auto", "cpu", 2), ("off", "cpu", 0), ("auto", "cuda", 0), ("auto", "mps", 0)],
)
def test_cpu_kernels_are_installed_on_cpus_alone_and_never_when_off(setting, device, expected):
    model = Watched()
    speed.speed_up(model, TrainSection(cpu_kernels=setting), torch.device(device))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 4, 6, 6))
    assert len(model.modes) == expected
    assert all(module.startswith("sft_hf.models.cpu.") for module in model.modes)
    assert bool(model._forward_pre_hooks) == bool(expected) and "forward" not in vars(model)


def test_training_with_and_without_cpu_kernels_agrees(make_recipe, tmp_path):
    options = {
        "train": {"max_steps": 3, "num_threads": 1, "mixed_precision": "bf16"},
        "optim__name": "sgd",
        "model__config_overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    with_kernels, _ = trained(make_recipe(**options))
    plain, _ = trained(make_recipe(**options, train__cpu_kernels="off", output_dir=str(tmp_path / "off")))
    assert any(not torch.equal(with_kernels[name], tensor) for name, tensor in plain.items())
    for name, tensor in plain.items():
        torch.testing.assert_close(with_kernels[name], tensor, rtol=0, atol=2e-3, msg=name)


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
