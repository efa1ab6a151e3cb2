"""The same run with the cache of what a frozen lower part computes: cold, warm, damaged or on two processes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly, same, weights
from tiers import quick
from two_processes import ROOT, run_on_two_processes

from sft_hf.data.row_store import INDEX
from sft_hf.engine import loop

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KINDS = ["bert_probe", "bert_lower", "vit_probe", "timm_probe", "whisper_encoder", "wav2vec2_probe"]


def steps(folder):
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


# --- what comes of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", quick(["timm_probe"], KINDS))
def test_a_run_is_the_same_cold_and_warm_and_close_to_one_without(kinds, kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    folders = {name: str(tmp_path / name) for name in ("cold", "warm", "without")}
    sgd = {"optim__name": "sgd"}  # Adam makes steps as large as others of gradients that are nothing but rounding
    briefly(kinds[kind](output_dir=folders["cold"], **sgd))
    assert "computed now" in caplog.text and " 0 of them" not in caplog.text
    caplog.clear()
    briefly(kinds[kind](output_dir=folders["warm"], **sgd))
    assert " 0 of them computed now" in caplog.text
    briefly(kinds[kind](output_dir=folders["without"], train__frozen_features="off", **sgd))
    cold, warm, without = (weights(folder) for folder in folders.values())
    assert same(cold, warm)
    assert steps(folders["cold"]) == steps(folders["warm"])
    assert all(torch.allclose(cold[name], without[name], atol=1e-5) for name in cold)
    losses = [[line["loss"] for line in steps(folders[name]) if "loss" in line] for name in ("cold", "without")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_frozen_part_does_not_run_after_the_first_pass(make_recipe, monkeypatch):
    from transformers.models.bert.modeling_bert import BertLayer

    rows = {True: 0, False: 0}
    forward, step = BertLayer.forward, loop.train_step
    stepping = [False]

    def counted(self, hidden_states, *arguments, **options):
        rows[stepping[0]] += 0 if hidden_states.is_meta else len(hidden_states)
        return forward(self, hidden_states, *arguments, **options)

    def train_step(*arguments):
        stepping[0] = True
        try:
            return step(*arguments)
        finally:
            stepping[0] = False

    monkeypatch.setattr(BertLayer, "forward", counted)
    monkeypatch.setattr(loop, "train_step", train_step)
    result = briefly(make_recipe(train__freeze=["backbone"], train__num_train_epochs=3))
    assert rows[True] == 0 < rows[False]
    assert result.metrics["train"]["num_steps"] == 33


def test_pictures_are_opened_no_more_once_they_are_in_the_cache(make_image_recipe, monkeypatch):
    from sft_hf.tasks.image.image_store import ImageStore

    opened, step = [], loop.train_step

    def train_step(*arguments):
        with monkeypatch.context() as patch:
            for name in ("open", "pixels"):
                plain = getattr(ImageStore, name)
                patch.setattr(ImageStore, name, lambda *place, plain=plain: opened.append(place) or plain(*place))
            return step(*arguments)

    monkeypatch.setattr(loop, "train_step", train_step)
    briefly(make_image_recipe(train__freeze=["backbone"], task__augmentation="evaluation"))
    assert not opened
    briefly(make_image_recipe(train__freeze=["backbone"], task__augmentation="none"), overwrite=True)
    assert opened


@pytest.mark.long
def test_bf16_is_cached_in_bf16(kinds, tmp_path, caplog, cache):
    caplog.set_level(logging.INFO, "sft_hf")
    folders = [str(tmp_path / name) for name in "ab"]
    for folder in folders:
        briefly(kinds["bert_lower"](output_dir=folder, train__mixed_precision="bf16"))
    assert "81 of them computed now" in caplog.text and " 0 of them computed now" in caplog.text
    assert same(*map(weights, folders))


@pytest.mark.long
def test_another_choice_of_rows_finds_those_that_are_there(kinds, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "a"), data__max_train_samples=40))
    assert "for 40 rows" in caplog.text and "40 of them computed now" in caplog.text
    changes = {"seed": 7, "optim__learning_rate": 1e-3, "train__per_device_train_batch_size": 5}
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "b"), **changes))
    assert "for 81 rows" in caplog.text and "41 of them computed now" in caplog.text


@pytest.mark.long
def test_other_weights_are_another_cache(kinds, tmp_path, checkpoint, caplog):
    from safetensors.torch import save_file

    caplog.set_level(logging.INFO, "sft_hf")
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "a")))
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "b"), model__name=str(other)))
    assert caplog.text.count("81 of them computed now") == 2


@pytest.mark.parametrize("damage", quick(["index"], ["flip", "cut", "index", "dtype"]))
def test_a_damaged_shard_is_made_anew(kinds, tmp_path, cache, caplog, damage):
    folders = [str(tmp_path / name) for name in "ab"]
    briefly(kinds["bert_probe"](output_dir=folders[0]))
    (shard,) = cache.glob("*/*")
    content = bytearray((shard / "0.npy").read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        (shard / "0.npy").write_bytes(content)
    elif damage == "cut":
        (shard / "0.npy").write_bytes(content[:-4])
    else:
        index = json.loads((shard / INDEX).read_text())
        if damage == "index":
            next(iter(index["rows"].values()))[0][0] = 10**9
        else:
            index["files"][0]["dtype"] = "load"
        (shard / INDEX).write_text(json.dumps(index))
    briefly(kinds["bert_probe"](output_dir=folders[1]))
    assert "corrupt; recomputing" in caplog.text
    assert same(*map(weights, folders))


@pytest.mark.long
def test_the_cache_can_be_deleted_while_it_is_used(kinds, tmp_path, cache, monkeypatch):
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "a")))
    step = loop.train_step

    def train_step(*arguments):
        shutil.rmtree(cache, ignore_errors=True)
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", train_step)
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "b")))
    assert not cache.exists()
    assert same(*(weights(tmp_path / name) for name in "ab"))


# --- two processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", quick(["bert_lower"], ["bert_lower", "vit_probe"]))
def test_two_processes_share_the_work_and_the_cache(kinds, kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    sgd = {"optim__name": "sgd", "train__per_device_train_batch_size": 4, "model__config_overrides": NO_DROPOUT}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(kinds[kind](output_dir=str(tmp_path / "two"), **sgd).to_yaml())
    done = run_on_two_processes(ROOT / "scripts" / "finetune.py", "--recipe", recipe)
    rows = 81 if kind == "bert_lower" else 27
    assert f"{rows} of them computed now" in done.stderr
    briefly(kinds[kind](output_dir=str(tmp_path / "one"), **sgd | {"train__per_device_train_batch_size": 8}))
    assert " 0 of them computed now" in caplog.text
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
