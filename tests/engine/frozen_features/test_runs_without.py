"""Runs that go on without the cache, wholly or from where it fails, and the line that says why."""

from __future__ import annotations

import errno
import logging
from functools import partial

import pytest
from small_runs import briefly, same, weights
from tiers import long

from sft_hf.core.errors import Terminated
from sft_hf.data.row_store import RowStore
from sft_hf.engine import loop
from sft_hf.engine.frozen_features import build as frozen_features

STREAM = {
    "data__streaming": True,
    "data__label_names": ["sport", "money", "food"],
    "data__validation_fraction": 0,
    "train__max_steps": 4,
}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("vit_probe", {"task__augmentation": "none"}, "task.augmentation: evaluation"),
        long(("whisper_encoder", {"task__speed_factors": [0.9, 1.0]}, "task.speed_factors")),
        long(("whisper_encoder", {"task__mask_time_prob": 0.5}, "task.mask_time_prob: 0")),
        long(("bert_probe", {"train__freeze": ["bert.embeddings"]}, "only embeddings are frozen")),
        long(("bert_probe", {"train__freeze": ["classifier"]}, "nothing below the trained parts is frozen")),
        ("bert_probe", {"train__frozen_features_gb": 1e-6}, "train.frozen_features_gb allows 1.0 kB"),
        long(("bert_probe", STREAM, "data.streaming")),
    ],
)
def test_the_reason_is_one_line_that_says_what_to_set(kinds, kind, changes, words, caplog, cache, tmp_path):
    caplog.set_level(logging.INFO, "sft_hf")
    briefly(kinds[kind](**changes))
    (message,) = [record.getMessage() for record in caplog.records if "train.frozen_features)" in record.getMessage()]
    assert words in message and "\n" not in message
    assert not list(cache.glob("*/*"))
    caplog.clear()
    briefly(kinds[kind](output_dir=str(tmp_path / "off"), train__frozen_features="off", **changes))
    assert "train.frozen_features" not in caplog.text
    assert same(weights(tmp_path / "run"), weights(tmp_path / "off"))


def test_a_backbone_that_looks_at_the_rows_beside_is_not_cached(kinds, monkeypatch, caplog, cache):
    """As one does that attends to padding."""
    from transformers.models.bert.modeling_bert import BertEmbeddings

    forward = BertEmbeddings.forward

    def mixed(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        return output + 0.01 * output.mean(dim=(0, 1))

    monkeypatch.setattr(BertEmbeddings, "forward", mixed)
    caplog.set_level(logging.INFO, "sft_hf")
    briefly(kinds["bert_probe"](train__max_steps=1))
    assert "depends on the other rows in the batch" in caplog.text
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
    briefly(kinds["bert_probe"](train__max_steps=1))
    assert "could not be split (KeyError: 'hidden')" in caplog.text


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_only_costs_the_cache(kinds, monkeypatch, caplog):
    monkeypatch.setattr("sft_hf.data.row_store.np.save", full_disk)
    caplog.set_level(logging.INFO, "sft_hf")
    result = briefly(kinds["bert_probe"](train__max_steps=1))
    assert "could not be stored" in caplog.text and "No space left" in caplog.text
    assert result.metrics["train"]["num_steps"] == 1


def test_a_signal_while_it_computes_keeps_what_is_there(kinds, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO, "sft_hf")
    recorded = frozen_features._Builder._record
    count = []

    def interrupted(self, row, batch=None):
        if batch is not None:
            count.append(row)
            if len(count) == 30:
                raise Terminated("stopped by a signal")
        return recorded(self, row, batch)

    recipe = kinds["bert_probe"](output_dir=str(tmp_path / "a"))
    monkeypatch.setattr(frozen_features._Builder, "_record", interrupted)
    with pytest.raises(Terminated, match="--resume continues"):
        briefly(recipe)
    monkeypatch.setattr(frozen_features._Builder, "_record", recorded)
    briefly(recipe, resume=True)
    assert "52 of them computed now" in caplog.text
    briefly(kinds["bert_probe"](output_dir=str(tmp_path / "b")))
    assert same(*(weights(tmp_path / name) for name in "ab"))


@pytest.mark.long
def test_a_run_that_goes_on_without_its_cache_says_so(kinds, monkeypatch, caplog):
    step = loop.train_step

    def stopped(training, examples, window, state):
        if state.step == 3:
            raise Terminated("here")
        return step(training, examples, window, state)

    recipe = kinds["bert_probe"](checkpoint__save_steps=1, train__max_steps=4)
    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(Terminated):
        briefly(recipe)
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(RowStore, "flush", full_disk)
    monkeypatch.setattr(frozen_features, "FORMAT", 2)
    briefly(recipe, resume=True)
    assert "started with the frozen-feature cache" in caplog.text
