"""Adapters: what trains, and that the merged model, the adapter and plain PEFT say the same."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.utils import set_seed
from adapted_models import CLASSES, HEADS, KINDS, LORA, PREFIX, answers, opened_plainly, plain_base
from safetensors.torch import load_file
from small_runs import prepared
from tiers import long, quick
from transformers import DynamicCache, pipeline

from sft_hf.core.errors import RecipeError
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run, open_trained
from sft_hf.jobs.run import predict_files

FEW = ["text", "whisper"]  # kinds that the quick tier trains and opens


def losses(run, model):
    """Of the first rows, as in evaluation."""
    model.eval()
    with torch.no_grad():
        return run.task.losses(model, run.task.collate([run.data.examples.features[row] for row in range(4)]))


# --- LoRA for every task -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_and_the_head_are_trained_and_at_first_nothing_has_changed(make, kind):
    recipe = make(kind)
    run = prepared(recipe)
    trained = {name for name, parameter in run.training.model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if ".lora_A." in name or ".lora_B." in name}
    assert adapters and all(name.startswith(HEADS[kind]) for name in trained - adapters)
    assert (trained > adapters) == (kind != "whisper")  # which brings all that the task needs
    assert type(run.training.model).__name__ == CLASSES[kind]
    set_seed(recipe.seed)
    base = run.task.build_model(run.source, recipe.model)
    assert torch.equal(losses(run, run.training.model), losses(run, base))


@pytest.mark.parametrize("kind", quick(["text"], KINDS))
def test_merged_model_and_adapter_on_the_checkpoint_say_the_same_with_plain_libraries(make, kind):
    recipe = make(kind, train__max_steps=3)
    result = finetune(recipe)
    merged = getattr(transformers, CLASSES[kind]).from_pretrained(result.output_dir / "model")
    base = plain_base(kind, recipe, result.output_dir)
    assert (
        not any("lora" in name for name in merged.state_dict())
        and merged.state_dict().keys() == base.state_dict().keys()
    )
    before = answers(kind, base)
    opened = opened_plainly(base, result.output_dir)
    after = answers(kind, opened)
    assert torch.allclose(after, answers(kind, merged), atol=1e-5)
    assert (after - before).abs().max() > 1e-3
    config = json.loads((result.output_dir / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe.model.name and config["inference_mode"]
    counted = result.metrics["model"]
    assert counted["num_parameters"] == sum(parameter.numel() for parameter in merged.parameters())
    tensors = load_file(result.output_dir / "adapter" / "adapter_model.safetensors")
    assert counted["num_trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("kind", quick(["whisper"], KINDS))
@pytest.mark.parametrize("output", [long("merged"), "adapter"])
def test_the_lines_of_python_on_the_card_open_the_adapter(make, kind, output, monkeypatch):
    recipe = make(kind, {**LORA, "output": output}, train__max_steps=3)
    result = finetune(recipe)
    place = {"merged": "adapter", "adapter": "model"}[output]
    card = (result.output_dir / place / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for written, meant in ((Path(recipe.model.name).name, recipe.model.name), ("", str(result.output_dir / place))):
        there = f'"./{written}"' if written else re.search(r'from_pretrained\(base, (".*?")\)', code)[1]
        assert code.count(there) == 1
        code = code.replace(there, repr(meant))
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, found)
    _, _, model = open_trained(result.output_dir)
    assert torch.allclose(answers(kind, found["model"]), answers(kind, model), atol=1e-5)


@pytest.mark.parametrize("kind", quick(["whisper"], KINDS))
def test_a_run_is_scored_again_and_opened_as_it_was(make, kind):
    result = finetune(make(kind, train__max_steps=3))
    again = evaluate_run(result.output_dir, "test")
    assert again["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)


@pytest.mark.parametrize("kind", quick(["text"], KINDS))
def test_an_adapter_that_is_not_merged_is_put_in_again(make, kind, tmp_path):
    merged, apart = (
        finetune(make(kind, {**LORA, "output": output}, train__max_steps=3, output_dir=str(tmp_path / output)))
        for output in ("merged", "adapter")
    )
    names = {path.name for path in (apart.output_dir / "model").iterdir()}
    assert {"config.json", "adapter_config.json", "adapter_model.safetensors"} <= names
    assert not any(name.startswith(("model", "pytorch_model")) for name in names)
    primary = merged.metrics["primary_metric"]
    assert apart.metrics["test"][primary] == merged.metrics["test"][primary]
    again = evaluate_run(apart.output_dir, "test")
    assert again["loss"] == pytest.approx(apart.metrics["test"]["loss"], rel=1e-6)
    assert again["loss"] == pytest.approx(merged.metrics["test"]["loss"], rel=1e-4)
    with pytest.raises(OSError, match="safetensors"):  # rather than a checkpoint without what was trained
        getattr(transformers, CLASSES[kind]).from_pretrained(apart.output_dir / "model")


def test_whisper_with_its_adapter_apart_may_still_write_what_the_transcripts_need(make):
    result = finetune(make("whisper", {**LORA, "output": "adapter"}, train__max_steps=1))
    _, _, model = open_trained(result.output_dir)
    saved = json.loads((result.output_dir / "model" / "generation_config.json").read_text())
    assert model.generation_config.suppress_tokens == saved["suppress_tokens"] != [0]
    assert len(saved["suppress_tokens"]) == 1  # of the checkpoint's two, one is in the transcripts


def test_a_pipeline_opens_the_merged_model(make, data_folder):
    result = finetune(make("text", train__num_train_epochs=4, optim__learning_rate=3e-2))
    assert result.metrics["test"]["accuracy"] > 0.8
    rows = [json.loads(line) for line in (result.output_dir / "predictions.jsonl").read_text().splitlines()]
    classify = pipeline("text-classification", model=str(result.output_dir / "model"), device="cpu")
    with open(data_folder / "test.csv", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for row, text in zip(rows, texts, strict=True):
        (theirs,) = classify([text], truncation=True)
        assert theirs["label"] == row["prediction"]
        assert theirs["score"] == pytest.approx(row["confidence"], abs=1e-5)


# --- other methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        {**LORA, "use_dora": True},
        long({"peft_type": "IA3"}),
        long({"peft_type": "VERA", "r": 8}),
        long({"peft_type": "LN_TUNING", "target_modules": ["output.LayerNorm"]}),
        {**LORA, "bias": "lora_only", "target_modules": "all-linear"},
    ],
    ids=["dora", "ia3", "vera", "ln_tuning", "lora_with_biases"],
)
def test_other_methods_merge_and_open_with_plain_libraries(make, section):
    recipe = make("text", section, train__max_steps=3)
    result = finetune(recipe)
    merged = transformers.BertForSequenceClassification.from_pretrained(result.output_dir / "model")
    opened = opened_plainly(plain_base("text", recipe, result.output_dir), result.output_dir)
    assert torch.allclose(answers("text", opened), answers("text", merged), atol=1e-5)
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)


def test_prefix_tuning_puts_learned_keys_and_values_before_every_text(make):
    recipe = make("text", PREFIX, train__num_train_epochs=1)
    result = finetune(recipe)
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)
    _, task, model = open_trained(result.output_dir)
    tensors = load_file(result.output_dir / "adapter" / "adapter_model.safetensors")
    base = plain_base("text", recipe, result.output_dir).eval()
    base.classifier.load_state_dict({key: tensors[f"base_model.classifier.{key}"] for key in ("weight", "bias")})
    batch = task.collate([{"input_ids": torch.randint(5, 30, (length,)).numpy()} for length in (9, 4)])
    # [tokens, layers x 2, heads, size of a head], keys before values, for each row of the batch
    table = tensors["prompt_embeddings"].view(4, 4, 2, 16).permute(1, 2, 0, 3)
    layers = [(table[2 * layer].expand(2, -1, -1, -1), table[2 * layer + 1].expand(2, -1, -1, -1)) for layer in (0, 1)]
    mask = torch.cat([torch.ones(2, 4, dtype=torch.long), batch["attention_mask"]], dim=1)
    with torch.no_grad():
        expected = base(input_ids=batch["input_ids"], attention_mask=mask, cache=DynamicCache(layers)).logits
        without = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found = task.forward(model, batch)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found - without).abs().max() > 1e-4


def test_prompts_are_kept_beside_the_checkpoint(make, caplog):
    caplog.set_level("INFO")
    result = finetune(make("text", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, train__max_steps=3))
    assert any(message.startswith("peft.output: adapter (virtual tokens") for message in caplog.messages)
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)
    assert next(iter(predict_files(result.output_dir, ["goal match team"])))["prediction"] in (
        "sport",
        "money",
        "food",
    )


def test_a_method_that_cannot_be_merged_is_told_before_training(make):
    section = {"peft_type": "LILY", "r": 4}
    assert prepared(make("text", section)).adapter.output == "adapter"
    with pytest.raises(RecipeError, match=r"peft.output: merged: .*cannot be merged.*use adapter"):
        prepared(make("text", {**section, "output": "merged"}))
