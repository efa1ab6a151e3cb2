"""Adapters in the loop: resuming, techniques, bf16, and gradients however a step is cut."""

from __future__ import annotations

import json

import distributed_gradients
import pytest
import torch
import transformers
from adapted_models import KINDS, LORA, PREFIX, answers, opened_plainly, plain_base
from safetensors.torch import load_file
from small_runs import briefly, interrupted_and_resumed, prepared, weights
from tiers import long, quick
from two_processes import run_on_two_processes

from sft_hf.engine.batches import MicroBatch, StepBatch
from sft_hf.engine.state import TrainState
from sft_hf.engine.step import train_step
from sft_hf.jobs.inference import evaluate_run


@pytest.mark.parametrize("kind", quick(["prefix", "frozen"], [*KINDS, "prefix", "frozen"]))
def test_a_resumed_run_has_the_same_bits(make, tmp_path, kind):
    changes = {"train__num_train_epochs": 2, "checkpoint__save_steps": 1, "train__max_steps": 4}
    section, which = (PREFIX, "text") if kind == "prefix" else (LORA, kind)
    if kind == "frozen":
        which, changes["train__freeze"] = "whisper", ["model.encoder"]
    whole = briefly(make(which, section, output_dir=str(tmp_path / "whole"), **changes))
    resumed = interrupted_and_resumed(make(which, section, output_dir=str(tmp_path / "cut"), **changes), stop_at=2)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "predictions.jsonl"):
        files = [(result.output_dir / name).read_bytes() for result in (whole, resumed)]
        assert files[0] == files[1], name


def test_the_best_weights_are_those_that_are_kept(make):
    result = briefly(make("text", eval__eval_steps=1, train__max_steps=6, optim__learning_rate=5e-2, seed=3))
    best = result.metrics["train"]["best_step"]
    log = [json.loads(line) for line in (result.output_dir / "log.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    assert best < 6 and len(evaluated) == 6
    assert result.metrics["validation"]["loss"] == pytest.approx(evaluated[best], rel=1e-5)


def test_techniques_work_on_what_is_trained(make):
    techniques = [{"name": "ema", "decay": 0.5}, {"name": "label_smoothing"}]
    recipe = make("text", train__max_steps=4, techniques=techniques)
    result = briefly(recipe)
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)
    merged = transformers.BertForSequenceClassification.from_pretrained(result.output_dir / "model")
    opened = opened_plainly(plain_base("text", recipe, result.output_dir), result.output_dir)
    assert torch.allclose(answers("text", opened), answers("text", merged), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "section"), [long(("text", LORA)), ("text", PREFIX), ("cnn", LORA), long(("whisper", LORA))]
)
def test_bf16_trains_adapters_too(make, kind, section):
    result = briefly(make(kind, section, train__max_steps=2, train__mixed_precision="bf16"))
    tensors = load_file(result.output_dir / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    assert evaluate_run(result.output_dir, "test")["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)


def test_batch_norm_stands_still(make, cnn_checkpoint):
    result = briefly(make("cnn", train__max_steps=3))
    before = load_file(cnn_checkpoint / "model.safetensors")
    after = weights(result.output_dir)
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
        window = StepBatch((tuple(MicroBatch(tuple(part.tolist()), False) for part in rows),))
        train_step(run.training, run.data.examples, window, TrainState())
        return {name: p.grad for name, p in run.training.model.named_parameters() if p.grad is not None}

    whole = gradients(1)
    assert whole.keys() == {name for name in whole if "lora_" in name or "classifier.modules_to_save" in name}
    for other in (gradients(3), gradients(1, train__gradient_checkpointing=True)):
        assert other.keys() == whole.keys()
        assert all(torch.allclose(other[name], whole[name], atol=1e-6) for name in whole)


@pytest.mark.long
def test_two_processes_give_the_gradient_of_one(make, tmp_path):
    still = {"model__config_overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    size = {"train__per_device_train_batch_size": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(make("text", {**LORA, "init_lora_weights": False}, **still, **size).to_yaml())
    run_on_two_processes(distributed_gradients.__file__, path, tmp_path / "gradients")
    found = [load_file(tmp_path / f"gradients.rank{rank}") for rank in (0, 1)]
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
    result = briefly(make("whisper", train__freeze=["model.encoder"], train__max_steps=3))
    tensors = load_file(result.output_dir / "adapter" / "adapter_model.safetensors")
    inside = {name: tensor for name, tensor in tensors.items() if ".encoder." in name and "lora_B" in name}
    outside = {name: tensor for name, tensor in tensors.items() if ".decoder." in name and "lora_B" in name}
    assert inside and not any(tensor.any() for tensor in inside.values())
    assert outside and all(tensor.any() for tensor in outside.values())
    assert any("runs once for each row" in message for message in caplog.messages)
