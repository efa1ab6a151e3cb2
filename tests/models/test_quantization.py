"""`model.quantization`: what is asked of Transformers, what is refused, and what a checkpoint of such a run holds."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
from adapted_models import LORA
from safetensors.torch import load_file
from small_runs import prepared
from transformers import AutoConfig, AutoModelForSequenceClassification

from sft_hf.core.errors import RecipeError, RunFolderError
from sft_hf.core.recipe.sections import ModelSection
from sft_hf.core.sources.sources import resolve
from sft_hf.engine.resume import checkpoint as checkpoints
from sft_hf.jobs.finetune import finetune
from sft_hf.models import quantization
from sft_hf.models.loading import load_pretrained


def pretend(monkeypatch, bitsandbytes):
    """Let bitsandbytes seem to be there, or not."""
    real, found = importlib.util.find_spec, ModuleSpec("bitsandbytes", None) if bitsandbytes else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: found if name == "bitsandbytes" else real(name, *a)
    )


@pytest.fixture
def has_everything(monkeypatch):
    """A machine with bitsandbytes and a GPU, as far as one can ask."""
    pretend(monkeypatch, True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)


def section(checkpoint, **quantized):
    return ModelSection(name=str(checkpoint), quantization=quantized)


def test_an_adapter_is_needed(make_recipe):
    with pytest.raises(RecipeError, match=r"model\.quantization.*peft"):
        make_recipe(model__quantization={"bits": 4})


@pytest.mark.parametrize(("package", "named"), [(False, "bitsandbytes"), (True, "CUDA")])
def test_what_is_missing_is_said_before_anything_is_loaded(make_recipe, monkeypatch, package, named):
    pretend(monkeypatch, package)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = make_recipe(peft=LORA, model__quantization={"bits": 4}, model__name="./nowhere")
    with pytest.raises(RecipeError, match=rf"model\.quantization.*{named}"):
        finetune(recipe)


def test_transformers_is_asked_for_qlora(checkpoint, has_everything):
    asked = {}

    class Loader:
        """Takes down what it is asked for, and loads without it."""

        @staticmethod
        def from_pretrained(*args, quantization_config, device_map, **options):
            asked.update(config=quantization_config, device_map=device_map)
            return AutoModelForSequenceClassification.from_pretrained(*args, **options)

    config = AutoConfig.from_pretrained(checkpoint)
    load_pretrained(Loader, config, resolve(str(checkpoint)), section(checkpoint, bits=4), {"num_labels": 2})
    made = asked["config"]
    assert asked["device_map"] == {"": 3}
    assert (made.load_in_4bit, made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert made.bnb_4bit_compute_dtype == torch.bfloat16
    changed = section(checkpoint, quant_type="fp4", use_double_quant=False, compute_dtype="float16")
    made = quantization.loading_options(changed)["quantization_config"]
    assert (made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == ("fp4", False)
    assert made.bnb_4bit_compute_dtype == torch.float16
    made = quantization.loading_options(section(checkpoint, bits=8))["quantization_config"]
    assert made.load_in_8bit and not made.load_in_4bit


def test_nothing_is_asked_for_without_it(checkpoint):
    assert quantization.loading_options(ModelSection(name=str(checkpoint))) == {}


def test_a_model_that_did_not_become_so_is_refused(checkpoint):
    with pytest.raises(RecipeError, match=r"model\.quantization"):
        quantization.check_quantized(torch.nn.Linear(2, 2), section(checkpoint))


def test_a_checkpoint_of_a_quantized_model_holds_what_is_trained(make_recipe, tmp_path):
    """The bits of a quantized weight cannot be loaded into a module again; the pretrained model has them."""
    training = prepared(make_recipe(peft=LORA)).training
    model = training.model
    model.is_quantized = True
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    saved = checkpoints.save_checkpoint(tmp_path, 1, model, training.optimizer, {})
    names = set(load_file(saved / checkpoints.MODEL))
    assert names == trained.keys() | dict(model.named_buffers()).keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    checkpoints.load_checkpoint(saved, model, training.optimizer)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in trained.items())
    model.requires_grad_(True)
    with pytest.raises(RunFolderError, match="does not fit"):
        checkpoints.load_checkpoint(saved, model, training.optimizer)


def test_a_quantized_checkpoint_is_not_merged(make_recipe, monkeypatch):
    from sft_hf.models.adapters import attach

    monkeypatch.setattr(attach, "is_quantized", lambda model: True)
    assert prepared(make_recipe(peft=LORA)).adapter.output == "adapter"
    with pytest.raises(RecipeError, match=r"peft\.output.*quantized"):
        prepared(make_recipe(peft={**LORA, "output": "merged"}))
