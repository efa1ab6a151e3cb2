"""Adapters: what trains, that the merged model, the adapter and plain PEFT say the same, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from accelerate.utils import set_seed
from safetensors.torch import load_file
from transformers import AutoConfig, DynamicCache, pipeline

from sft_hf import loop, process
from sft_hf.data.batching import MicroBatch, Window
from sft_hf.errors import CheckpointError, RecipeError, Terminated, UserError
from sft_hf.inference import evaluate_run, open_trained, predict_inputs
from sft_hf.loop import TrainState
from sft_hf.models.adapter_settings import adapter_config
from sft_hf.run import _Run, finetune
from sft_hf.run_folder import RunFolder
from sft_hf.step import train_step

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
KINDS = ["text", "vit", "cnn", "whisper", "wav2vec2"]
CLASSES = {
    "text": "BertForSequenceClassification",
    "vit": "ViTForImageClassification",
    "cnn": "TimmWrapperForImageClassification",
    "whisper": "WhisperForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
}
HEADS = {
    "text": "classifier.",
    "vit": "classifier.",
    "cnn": "timm_model.classifier.",
    "whisper": "-",
    "wav2vec2": "lm_head.",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def cnn_checkpoint(tmp_path_factory):
    """A tiny timm CNN with batch norm."""
    folder = tmp_path_factory.mktemp("timm")
    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = transformers.TimmWrapperConfig(
        architecture="test_efficientnet", num_labels=5, pretrained_cfg={**shape, "interpolation": "bilinear"}
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make(make_recipe, make_image_recipe, make_speech_recipe, cnn_checkpoint, wav2vec2_checkpoint):
    """Return a function that makes a recipe of one of the kinds, with LoRA unless another section is given."""

    def of(kind, section=LORA, **changes):
        makers = {"text": make_recipe, "vit": make_image_recipe, "cnn": make_image_recipe}
        if kind in ("cnn", "wav2vec2"):
            changes = {"model__name": str({"cnn": cnn_checkpoint, "wav2vec2": wav2vec2_checkpoint}[kind]), **changes}
        return makers.get(kind, make_speech_recipe)(peft=section, **changes)

    return of


def prepared(recipe):
    run = _Run(recipe, RunFolder(Path(recipe.output_dir)), process.build_accelerator("no", 1))
    run.prepare()
    return run


def losses(run, model):
    """Of the first rows, as in evaluation."""
    model.eval()
    with torch.no_grad():
        return run.task.losses(model, run.task.collate([run.data.examples.features[row] for row in range(4)]))


def some_inputs(kind, model):
    """Numbers that a model of this kind takes."""
    generator = torch.Generator().manual_seed(3)
    if kind == "text":
        return {"input_ids": torch.randint(5, 30, (3, 7), generator=generator)}
    if kind in ("vit", "cnn"):
        size = {"vit": 16, "cnn": 32}[kind]
        return {"pixel_values": torch.randn(3, 3, size, size, generator=generator)}
    if kind == "wav2vec2":
        return {"input_values": torch.randn(3, 4000, generator=generator)}
    features = torch.randn(3, 40, 400, generator=generator)
    return {"input_features": features, "decoder_input_ids": torch.randint(5, 30, (3, 5), generator=generator)}


def answers(kind, model):
    with torch.no_grad():
        return model.eval()(**some_inputs(kind, model)).logits


def plain_base(kind, recipe, folder):
    """The checkpoint as anyone opens it, with a head of the right size."""
    config = AutoConfig.from_pretrained(folder / "model")
    size = {"vocab_size": config.vocab_size} if kind == "wav2vec2" else {"num_labels": config.num_labels}
    options = {} if kind == "whisper" else {**size, "ignore_mismatched_sizes": True}
    return getattr(transformers, CLASSES[kind]).from_pretrained(recipe.model.name, **options)


def opened_plainly(base, folder):
    """The adapter on the checkpoint, by PEFT alone; what PEFT and Transformers warn each other of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder / "adapter")


def saved_weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["merged", "adapter"])
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_scored_again_and_opened_as_it_was(make, kind):
    result = finetune(make(kind, train__max_steps=3))
    again = evaluate_run(result.output_dir, "test")
    assert again["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
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
        {"peft_type": "IA3"},
        {"peft_type": "VERA", "r": 8},
        {"peft_type": "LN_TUNING", "target_modules": ["output.LayerNorm"]},
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
    assert next(iter(predict_inputs(result.output_dir, ["goal match team"])))["prediction"] in (
        "sport",
        "money",
        "food",
    )


def test_a_method_that_cannot_be_merged_is_told_before_training(make):
    section = {"peft_type": "LILY", "r": 4}
    assert prepared(make("text", section)).adapter.output == "adapter"
    with pytest.raises(RecipeError, match=r"peft.output: merged: .*cannot be merged.*take adapter"):
        prepared(make("text", {**section, "output": "merged"}))


# --- in the loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "prefix", "frozen"])
def test_a_resumed_run_has_the_same_bits(make, tmp_path, monkeypatch, kind):
    changes = {"train__num_train_epochs": 2, "checkpoint__save_steps": 1, "train__max_steps": 4}
    section, which = (PREFIX, "text") if kind == "prefix" else (LORA, kind)
    if kind == "frozen":
        which, changes["train__freeze"] = "whisper", ["model.encoder"]
    whole = finetune(make(which, section, output_dir=str(tmp_path / "whole"), **changes))
    step = loop.train_step

    def interrupted(training, examples, window, state):
        if state.step == 2:
            raise Terminated("here")
        return step(training, examples, window, state)

    recipe = make(which, section, output_dir=str(tmp_path / "cut"), **changes)
    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(Terminated):
        finetune(recipe)
    monkeypatch.setattr(loop, "train_step", step)
    resumed = finetune(recipe, resume=True)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "predictions.jsonl"):
        files = [(result.output_dir / name).read_bytes() for result in (whole, resumed)]
        assert files[0] == files[1], name


def test_the_best_weights_are_those_that_are_kept(make):
    result = finetune(make("text", eval__eval_steps=1, train__max_steps=6, optim__learning_rate=5e-2, seed=3))
    best = result.metrics["train"]["best_step"]
    log = [json.loads(line) for line in (result.output_dir / "log.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    assert best < 6 and len(evaluated) == 6
    assert result.metrics["validation"]["loss"] == pytest.approx(evaluated[best], rel=1e-5)


def test_techniques_work_on_what_is_trained(make):
    techniques = [{"name": "ema", "decay": 0.5}, {"name": "label_smoothing"}]
    recipe = make("text", train__max_steps=4, techniques=techniques)
    result = finetune(recipe)
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)
    merged = transformers.BertForSequenceClassification.from_pretrained(result.output_dir / "model")
    opened = opened_plainly(plain_base("text", recipe, result.output_dir), result.output_dir)
    assert torch.allclose(answers("text", opened), answers("text", merged), atol=1e-5)


@pytest.mark.parametrize(("kind", "section"), [("text", LORA), ("text", PREFIX), ("cnn", LORA), ("whisper", LORA)])
def test_bf16_trains_adapters_too(make, kind, section):
    result = finetune(make(kind, section, train__max_steps=2, train__mixed_precision="bf16"))
    tensors = load_file(result.output_dir / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)


def test_batch_norm_stands_still(make, cnn_checkpoint):
    result = finetune(make("cnn", train__max_steps=3))
    before = load_file(cnn_checkpoint / "model.safetensors")
    after = saved_weights(result.output_dir)
    changed = {name for name in before if "classifier" not in name and not torch.equal(before[name], after[name])}
    assert changed and not any("running" in name or ".bn" in name for name in changed)


@pytest.mark.parametrize("targets", [["conv_pw", "conv_pwl"], r".*\.conv_exp"])
def test_convolutions_are_adapted_by_name_and_by_pattern(make, targets):
    model = prepared(make("cnn", {**LORA, "target_modules": targets})).training.model
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_modules() if name.endswith(".lora_A")}
    ends = targets if isinstance(targets, list) else ["conv_exp"]
    assert adapted == {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in ends}


def test_gradients_are_the_same_however_a_step_is_cut_and_with_activations_recomputed(make, tmp_path):
    still = {"model__config_overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}

    def gradients(pieces, **changes):
        run = prepared(make("text", {**LORA, "init_lora_weights": False}, **still, **changes))
        run.training.model.train()
        rows = torch.arange(8).chunk(pieces)
        window = Window((tuple(MicroBatch(tuple(part.tolist()), False) for part in rows),))
        train_step(run.training, run.data.examples, window, TrainState())
        return {name: p.grad for name, p in run.training.model.named_parameters() if p.grad is not None}

    whole = gradients(1)
    assert whole.keys() == {name for name in whole if "lora_" in name or "classifier.modules_to_save" in name}
    for other in (gradients(3), gradients(1, train__gradient_checkpointing=True)):
        assert other.keys() == whole.keys()
        assert all(torch.allclose(other[name], whole[name], atol=1e-6) for name in whole)


def test_two_processes_give_the_gradient_of_one(make, tmp_path):
    still = {"model__config_overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    script = Path(__file__).parents[1] / "distributed_gradients.py"
    size = {"train__per_device_train_batch_size": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(make("text", {**LORA, "init_lora_weights": False}, **still, **size).to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "CUDA_VISIBLE_DEVICES": ""}
    out = str(tmp_path / "gradients")
    done = subprocess.run([*command, str(path), out], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [load_file(f"{out}.rank{rank}") for rank in (0, 1)]
    run = prepared(make("text", {**LORA, "init_lora_weights": False}, **still))
    examples, plan = run.training.data.epoch(0)
    run.training.model.train()
    train_step(run.training, examples, plan[0], TrainState())
    one = {f"first.{n}": p.grad for n, p in run.training.model.named_parameters() if p.grad is not None}
    assert one.keys() == {name for name in found[0] if name.startswith("first.")}
    for rank in found:
        assert all(torch.allclose(rank[name], one[name], atol=1e-6) for name in one)


def test_frozen_parts_stay_frozen_with_the_adapters_in_them_and_run_once(make, caplog):
    caplog.set_level("INFO")
    result = finetune(make("whisper", train__freeze=["model.encoder"], train__max_steps=3))
    tensors = load_file(result.output_dir / "adapter" / "adapter_model.safetensors")
    inside = {name: tensor for name, tensor in tensors.items() if ".encoder." in name and "lora_B" in name}
    outside = {name: tensor for name, tensor in tensors.items() if ".decoder." in name and "lora_B" in name}
    assert inside and not any(tensor.any() for tensor in inside.values())
    assert outside and all(tensor.any() for tensor in outside.values())
    assert any("runs once for each row" in message for message in caplog.messages)


# --- what cannot be meant ------------------------------------------------------------------------------------------


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
        ("text", {**LORA, "init_lora_weights": "pissa"}, {}, "changes the checkpoint's own weights"),
        ("text", {**LORA, "target_modules": ["quary", "value"]}, {}, "no module is called 'quary'; did you mean query"),
        ("text", {**LORA, "target_modules": "query"}, {}, "no module's whole name matches 'query'.*write a list"),
        ("text", {**LORA, "target_modules": "(query"}, {}, "is no regular expression"),
        ("text", {**LORA, "target_modules": ["LayerNorm"]}, {}, "PEFT refuses these settings.*LayerNorm"),
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
