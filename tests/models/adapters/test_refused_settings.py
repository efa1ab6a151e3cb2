"""Settings and files of adapters that cannot be meant are refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import pytest
from adapted_models import LORA, PREFIX

from sft_hf.core.errors import CheckpointError, RecipeError, UserError
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run
from sft_hf.models.adapters.settings import adapter_config


@pytest.mark.parametrize(
    ("kind", "section", "changes", "words"),
    [
        ("text", {"peft_type": "LRA"}, {}, "no method 'LRA'; did you mean LORA"),
        ("text", {"peft_type": "lora"}, {}, "no method 'lora'; did you mean LORA"),
        ("text", {"peft_type": "ADALORA"}, {}, "moves ranks between layers"),
        ("text", {**LORA, "lora_alhpa": 3}, {}, "LoraConfig has no such field; did you mean lora_alpha"),
        ("text", {**LORA, "r": "eight"}, {}, "peft.r: .*valid integer.*'eight'"),
        ("text", {**LORA, "r": 0}, {}, "`r` should be a positive"),
        ("text", {**LORA, "output": "mergd"}, {}, "peft.output: 'mergd'; did you mean merged"),
        ("text", {**LORA, "base_model_name_or_path": "x"}, {}, "filled in by the run"),
        ("text", {**LORA, "megatron_core": "os"}, {}, "peft.megatron_core: is not supported"),
        ("text", {**LORA, "init_lora_weights": "pissa"}, {}, "changes the pretrained weights"),
        ("text", {**LORA, "target_modules": ["quary", "value"]}, {}, "no module is called 'quary'; did you mean query"),
        ("text", {**LORA, "target_modules": "query"}, {}, "no module's whole name matches 'query'.*write a list"),
        ("text", {**LORA, "target_modules": "(query"}, {}, "is not a regular expression"),
        ("text", {**LORA, "target_modules": ["LayerNorm"]}, {}, "PEFT rejects these settings.*LayerNorm"),
        ("text", {**LORA, "modules_to_save": ["poler"]}, {}, "peft.modules_to_save: .*did you mean pooler"),
        ("text", LORA, {"train__freeze": ["backbone"]}, "train.freeze: backbone leaves nothing of the adapter"),
        ("text", PREFIX, {"task__max_length": 64}, "set task.max_length to 60"),
        ("text", PREFIX, {"train__gradient_checkpointing": True}, "cannot recompute"),
        ("text", {**PREFIX, "output": "merged"}, {}, "peft.output: merged: virtual tokens"),
        ("vit", PREFIX, {}, "virtual tokens before a text, and image_classification has none"),
        ("whisper", PREFIX, {}, "virtual tokens before a text, and speech_recognition has none"),
        ("cnn", {**LORA, "target_modules": "all-linear"}, {}, "no linear layer outside its head.*conv"),
    ],
)
def test_what_cannot_be_meant_is_one_line_before_training(make, kind, section, changes, words):
    recipe = make(kind, section, **changes)
    with pytest.raises(RecipeError, match=words) as caught:
        finetune(recipe)
    assert "\n" not in str(caught.value)
    assert not Path(recipe.output_dir).exists()


def test_the_method_has_to_be_named(make_recipe):
    with pytest.raises(RecipeError, match=r"peft: peft_type is missing; give one of PEFT's names: LORA"):
        make_recipe(peft={"r": 8})


def test_without_peft_installed_the_extra_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft.mapping", None)
    with pytest.raises(UserError, match=r"needs peft.*pip install 'sft-hf\[peft\]'"):
        finetune(make("text"))


def test_every_method_of_peft_is_understood_or_refused_in_one_line():
    for name in (kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING):
        tokens = {"num_virtual_tokens": 4} if name.endswith(("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")) else {}
        try:
            assert adapter_config({"peft_type": name, **tokens}, None).peft_type == name
        except RecipeError as error:
            assert "\n" not in str(error) and len(str(error)) < 400


def test_a_damaged_or_foreign_adapter_is_refused(make):
    result = finetune(make("text", {**LORA, "output": "adapter"}, train__max_steps=1))
    file = result.output_dir / "model" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        evaluate_run(result.output_dir)
    file.write_bytes(whole)
    recipe = result.output_dir / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("r: 4", "r: 2"))
    with pytest.raises(CheckpointError, match=r"does not fit the run's peft section: .*lora_A"):
        evaluate_run(result.output_dir)
