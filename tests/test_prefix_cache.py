"""The cache of what a frozen lower part computes: the same run with it, cold, warm, resumed or on two processes."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_on_two_processes

from sft_hf import loop, prefix_cache, process
from sft_hf.errors import Terminated
from sft_hf.freezing import evaluate_frozen_parts
from sft_hf.prefix_replay import stack_like
from sft_hf.prefix_store import INDEX, PrefixStore
from sft_hf.prefix_trace import Declined, find_prefix
from sft_hf.run import _Run, finetune
from sft_hf.run_folder import RunFolder

LOWER = ["bert.embeddings", "bert.encoder.layer.0"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STREAM = {
    "data__streaming": True,
    "data__label_names": ["sport", "money", "food"],
    "data__validation_fraction": 0,
    "train__max_steps": 4,
}
NO_SPEC_AUGMENT = {"task__mask_time_prob": 0.0, "task__mask_feature_prob": 0.0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefix"


@pytest.fixture(scope="session")
def timm_checkpoint(tmp_path_factory):
    """A tiny timm CNN with batch norm whose statistics are not those it was built with."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    shape = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    config = TimmWrapperConfig(architecture="test_efficientnet", num_labels=5, pretrained_cfg=shape)
    model = AutoModelForImageClassification.from_config(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def kinds(make_recipe, make_image_recipe, make_speech_recipe, timm_checkpoint, wav2vec2_checkpoint, checkpoint):
    """Functions that make recipes with a frozen lower part, one for each way of using one."""
    images = {"task__augmentation": "evaluation", "train__freeze": ["backbone"]}
    return {
        "bert_probe": lambda **changes: make_recipe(**{"train__freeze": ["backbone"], **changes}),
        "bert_lower": lambda **changes: make_recipe(**{"train__freeze": LOWER, **changes}),
        "vit_probe": lambda **changes: make_image_recipe(**images | changes),
        "timm_probe": lambda **changes: make_image_recipe(**images | {"model__name": str(timm_checkpoint)} | changes),
        "whisper_encoder": lambda **changes: make_speech_recipe(**{"train__freeze": ["model.encoder"], **changes}),
        "wav2vec2_probe": lambda **changes: make_speech_recipe(
            **{"model__name": str(wav2vec2_checkpoint), "train__freeze": ["backbone"], **NO_SPEC_AUGMENT, **changes}
        ),
    }


KINDS = ["bert_probe", "bert_lower", "vit_probe", "timm_probe", "whisper_encoder", "wav2vec2_probe"]


def run_of(recipe):
    run = _Run(recipe, RunFolder(Path(recipe.output_dir)), process.build_accelerator("no", 1))
    run.prepare()
    run.training.model.train()
    evaluate_frozen_parts(run.training.model)
    return run


def prefix_of(recipe):
    run = run_of(recipe)
    examples = run.training.data.examples
    batch = run.task.collate([examples.features[row] for row in (0, 1)])
    return find_prefix(run.training.model, lambda: run.task.losses(run.training.model, batch))


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def steps(folder):
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


# --- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "modules", "consumers"),
    [
        ("bert_probe", {"bert"}, {"dropout"}),
        ("bert_lower", {"bert.embeddings", "bert.encoder.layer.0"}, {"bert.encoder.layer.1"}),
        ("vit_probe", {"vit"}, {"classifier"}),
        ("whisper_encoder", {"model.encoder"}, {"model.decoder"}),
        ("wav2vec2_probe", {"wav2vec2"}, {"lm_head"}),
    ],
)
def test_the_cut_is_where_the_trained_part_begins(kinds, kind, modules, consumers):
    found = prefix_of(kinds[kind]())
    assert set(found.modules) == modules
    assert {cut.module for cut in found.cuts} == consumers
    assert found.tensors == 1


def test_timm_is_cut_before_its_classifier(kinds):
    found = prefix_of(kinds["timm_probe"]())
    assert [cut.module for cut in found.cuts] == ["timm_model.classifier"]
    assert "timm_model.blocks" in found.modules
    assert "timm_model.global_pool" in set(found.skipped) - set(found.modules)


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (["bert.embeddings"], "only embeddings"),
        (["bert.encoder.layer.0"], "nothing below"),
        (["bert.embeddings", "bert.encoder.layer.0.output.dense"], "only embeddings"),  # a skip connection around it
    ],
)
def test_where_nothing_can_be_cut_off_the_reason_is_told(make_recipe, patterns, reason):
    with pytest.raises(Declined, match=reason):
        prefix_of(make_recipe(train__freeze=patterns))


def test_frozen_word_vectors_are_not_worth_a_cache():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.embeddings(ids).mean(1))

    model = Model()
    model.embeddings.weight.requires_grad_(False)
    with pytest.raises(Declined, match="only embeddings"):
        find_prefix(model, lambda: model(torch.tensor([[1, 2], [3, 4]])))


def test_a_skip_connection_around_a_trained_layer_is_kept_whole():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.trained, self.norm = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            y = self.frozen(x)
            return self.norm(y + self.trained(y))

    model = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), Block(), torch.nn.Linear(4, 2))
    found = find_prefix(model, lambda: model(torch.ones(2, 4)))
    assert found.modules == ("0",)
    assert [cut.module for cut in found.cuts] == ["1"]
    with pytest.raises(Declined, match="woven"):
        block = Block()
        find_prefix(block, lambda: block(torch.ones(2, 4)))


# --- what comes of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_same_cold_and_warm_and_close_to_one_without(kinds, kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    folders = {name: str(tmp_path / name) for name in ("cold", "warm", "without")}
    sgd = {"optim__name": "sgd"}  # Adam makes steps as large as others of gradients that are nothing but rounding
    finetune(kinds[kind](output_dir=folders["cold"], **sgd))
    assert "computed now" in caplog.text and " 0 of them" not in caplog.text
    caplog.clear()
    finetune(kinds[kind](output_dir=folders["warm"], **sgd))
    assert " 0 of them computed now" in caplog.text
    finetune(kinds[kind](output_dir=folders["without"], train__prefix_cache="off", **sgd))
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
    result = finetune(make_recipe(train__freeze=["backbone"], train__num_train_epochs=3))
    assert rows[True] == 0 < rows[False]
    assert result.metrics["train"]["num_steps"] == 33


def test_pictures_are_opened_no_more_once_they_are_in_the_cache(make_image_recipe, monkeypatch):
    from sft_hf.data.image_store import ImageStore

    opened, step = [], loop.train_step
    plain = ImageStore.open

    def train_step(*arguments):
        monkeypatch.setattr(ImageStore, "open", lambda *place: opened.append(place) or plain(*place))
        try:
            return step(*arguments)
        finally:
            monkeypatch.setattr(ImageStore, "open", plain)

    monkeypatch.setattr(loop, "train_step", train_step)
    finetune(make_image_recipe(train__freeze=["backbone"], task__augmentation="evaluation"))
    assert not opened
    finetune(make_image_recipe(train__freeze=["backbone"], task__augmentation="none"), overwrite=True)
    assert opened


def test_bf16_is_cached_in_bf16(kinds, tmp_path, caplog, cache):
    caplog.set_level(logging.INFO, "sft_hf")
    folders = [str(tmp_path / name) for name in "ab"]
    for folder in folders:
        finetune(kinds["bert_lower"](output_dir=folder, train__mixed_precision="bf16"))
    assert "81 of them computed now" in caplog.text and " 0 of them computed now" in caplog.text
    assert same(*map(weights, folders))


def test_another_choice_of_rows_finds_those_that_are_there(kinds, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "a"), data__max_train_samples=40))
    assert "for 40 rows" in caplog.text and "40 of them computed now" in caplog.text
    changes = {"seed": 7, "optim__learning_rate": 1e-3, "train__per_device_train_batch_size": 5}
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "b"), **changes))
    assert "for 81 rows" in caplog.text and "41 of them computed now" in caplog.text


def test_other_weights_are_another_cache(kinds, tmp_path, checkpoint, caplog):
    from safetensors.torch import save_file

    caplog.set_level(logging.INFO, "sft_hf")
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "a")))
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "b"), model__name=str(other)))
    assert caplog.text.count("81 of them computed now") == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "index", "dtype"])
def test_a_damaged_shard_is_made_anew(kinds, tmp_path, cache, caplog, damage):
    folders = [str(tmp_path / name) for name in "ab"]
    finetune(kinds["bert_probe"](output_dir=folders[0]))
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
    finetune(kinds["bert_probe"](output_dir=folders[1]))
    assert "damaged, and made anew" in caplog.text
    assert same(*map(weights, folders))


def test_the_cache_can_be_deleted_while_it_is_used(kinds, tmp_path, cache, monkeypatch):
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "a")))
    step = loop.train_step

    def train_step(*arguments):
        shutil.rmtree(cache, ignore_errors=True)
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", train_step)
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "b")))
    assert not cache.exists()
    assert same(*(weights(tmp_path / name) for name in "ab"))


# --- where it is not used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("vit_probe", {"task__augmentation": "none"}, "task.augmentation: evaluation"),
        ("whisper_encoder", {"task__speed_factors": [0.9, 1.0]}, "task.speed_factors"),
        ("whisper_encoder", {"task__mask_time_prob": 0.5}, "task.mask_time_prob: 0"),
        ("bert_probe", {"train__freeze": ["bert.embeddings"]}, "only embeddings are frozen"),
        ("bert_probe", {"train__freeze": ["classifier"]}, "nothing below the trained parts is frozen"),
        ("bert_probe", {"train__prefix_cache_gb": 1e-6}, "train.prefix_cache_gb allows 1.0 kB"),
        ("bert_probe", STREAM, "data.streaming"),
    ],
)
def test_the_reason_is_one_line_that_says_what_to_set(kinds, kind, changes, words, caplog, cache, tmp_path):
    caplog.set_level(logging.INFO, "sft_hf")
    finetune(kinds[kind](**changes))
    (message,) = [record.getMessage() for record in caplog.records if "train.prefix_cache)" in record.getMessage()]
    assert words in message and "\n" not in message
    assert not list(cache.glob("*/*"))
    caplog.clear()
    finetune(kinds[kind](output_dir=str(tmp_path / "off"), train__prefix_cache="off", **changes))
    assert "prefix_cache" not in caplog.text
    assert same(weights(tmp_path / "run"), weights(tmp_path / "off"))


def test_runs_that_freeze_nothing_are_left_alone(make_recipe, monkeypatch):
    monkeypatch.setattr(prefix_cache, "_Builder", None)
    run = run_of(make_recipe())
    assert prefix_cache.with_prefix_cache(run.training, loop.TrainState()) is run.training


def test_a_backbone_that_looks_at_the_rows_beside_is_not_cached(kinds, monkeypatch, caplog, cache):
    """As one does that attends to padding."""
    from transformers.models.bert.modeling_bert import BertEmbeddings

    forward = BertEmbeddings.forward

    def mixed(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        return output + 0.01 * output.mean(dim=(0, 1))

    monkeypatch.setattr(BertEmbeddings, "forward", mixed)
    caplog.set_level(logging.INFO, "sft_hf")
    finetune(kinds["bert_probe"](train__max_steps=1))
    assert "depends on the rows beside it" in caplog.text
    assert not list(cache.glob("*/*"))


def test_an_architecture_that_fails_in_the_replay_trains_without(kinds, monkeypatch, caplog):
    from transformers import BertForSequenceClassification

    forward = BertForSequenceClassification.forward

    def particular(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        if isinstance(self.bert.__dict__.get("forward"), partial):  # the stand-in
            raise KeyError("hidden")
        return output

    monkeypatch.setattr(BertForSequenceClassification, "forward", particular)
    caplog.set_level(logging.INFO, "sft_hf")
    finetune(kinds["bert_probe"](train__max_steps=1))
    assert "could not be cut off (KeyError: 'hidden')" in caplog.text


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_only_costs_the_cache(kinds, monkeypatch, caplog):
    monkeypatch.setattr("sft_hf.prefix_store.np.save", full_disk)
    caplog.set_level(logging.INFO, "sft_hf")
    result = finetune(kinds["bert_probe"](train__max_steps=1))
    assert "could not be kept" in caplog.text and "No space left" in caplog.text
    assert result.metrics["train"]["num_steps"] == 1


def test_a_signal_while_it_computes_keeps_what_is_there(kinds, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO, "sft_hf")
    recorded = prefix_cache._Builder._record
    count = []

    def interrupted(self, row, batch=None):
        if batch is not None:
            count.append(row)
            if len(count) == 30:
                raise Terminated("stopped by a signal")
        return recorded(self, row, batch)

    recipe = kinds["bert_probe"](output_dir=str(tmp_path / "a"))
    monkeypatch.setattr(prefix_cache._Builder, "_record", interrupted)
    with pytest.raises(Terminated, match="--resume continues"):
        finetune(recipe)
    monkeypatch.setattr(prefix_cache._Builder, "_record", recorded)
    finetune(recipe, resume=True)
    assert "52 of them computed now" in caplog.text
    finetune(kinds["bert_probe"](output_dir=str(tmp_path / "b")))
    assert same(*(weights(tmp_path / name) for name in "ab"))


def test_a_run_that_goes_on_without_its_cache_says_so(kinds, monkeypatch, caplog):
    step = loop.train_step

    def stopped(training, examples, window, state):
        if state.step == 3:
            raise Terminated("here")
        return step(training, examples, window, state)

    recipe = kinds["bert_probe"](checkpoint__save_steps=1, train__max_steps=4)
    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(Terminated):
        finetune(recipe)
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(PrefixStore, "flush", full_disk)
    monkeypatch.setattr(prefix_cache, "FORMAT", 2)
    finetune(recipe, resume=True)
    assert "the run began with the cache: the last bits may differ" in caplog.text


# --- the store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_they_went(dtype):
    rows = (
        {f"{number:064x}": [torch.arange(6).view(2, 3).to(dtype) + number] for number in range(3)}
        if (dtype != torch.bool)
        else {f"{number:064x}": [torch.tensor([True, False])] for number in range(3)}
    )
    store = PrefixStore("key", 10**6)
    for name, tensors in rows.items():
        store.add(name, tensors)
    store.flush()
    again = PrefixStore("key", 10**6)
    again.open()
    for name, tensors in rows.items():
        (found,) = again.read(name)
        assert found.dtype == dtype and torch.equal(found, tensors[0])
    assert "f" * 64 not in again


def test_shards_that_were_not_used_for_longest_make_room(cache):
    for age, key in enumerate(("new", "old", "older")):
        store = PrefixStore(key, 10**6)
        store.add("0" * 64, [torch.zeros(1000)])
        store.flush()
        (shard,) = (cache / key).iterdir()
        os.utime(shard, (10**9 - age, 10**9 - age))
    own = PrefixStore("older", 10_500)  # three shards of about 4.2 kB
    own.open()
    own.make_room(1000)
    assert {path.parent.name for path in cache.glob("*/*")} == {"new", "older"}  # what is open stays
    own.make_room(9000)
    assert {path.parent.name for path in cache.glob("*/*")} == {"older"}


def test_rows_are_filled_up_with_zeros_and_never_cut():
    rows = [torch.ones(2, 3), torch.ones(1, 3)]
    filled = stack_like(rows, torch.full((2, 4, 3), float("nan")))
    assert filled.tolist() == [[[1.0] * 3] * 2 + [[0.0] * 3] * 2, [[1.0] * 3] + [[0.0] * 3] * 3]
    with pytest.raises(Declined):
        stack_like(rows, torch.zeros(2, 1, 3))
    with pytest.raises(Declined):
        stack_like(rows, torch.zeros(1, 4, 3))


# --- two processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert_lower", "vit_probe"])
def test_two_processes_share_the_work_and_the_cache(kinds, kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    sgd = {"optim__name": "sgd", "train__per_device_train_batch_size": 4, "model__config_overrides": NO_DROPOUT}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(kinds[kind](output_dir=str(tmp_path / "two"), **sgd).to_yaml())
    done = run_on_two_processes(Path(__file__).parents[1] / "scripts" / "finetune.py", "--recipe", recipe)
    rows = 81 if kind == "bert_lower" else 27
    assert f"{rows} of them computed now" in done.stderr
    finetune(kinds[kind](output_dir=str(tmp_path / "one"), **sgd | {"train__per_device_train_batch_size": 8}))
    assert " 0 of them computed now" in caplog.text
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
