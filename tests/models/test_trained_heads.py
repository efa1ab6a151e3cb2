"""Heads that a checkpoint was trained with: kept with their rows in the order of the labels, or started anew."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sft_hf.models.freezing import note_new_weights
from sft_hf.models.trained_heads import HeadRows, in_own_order, matching_rows, settle_head

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("own", "wanted", "rows"),
    [
        (("NEGATIVE", "POSITIVE"), ("negative", "positive"), [0, 1]),
        (("NEGATIVE", "POSITIVE"), ("Positive", "negative"), [1, 0]),
        (("a", "b", "c"), ("c", "a", "b"), [2, 0, 1]),
        (("Caf\u00e9", "x"), ("x", "Cafe\u0301"), [1, 0]),
        (("very_good", "bad"), ("bad", "very good"), [1, 0]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("0", "1"), [0, 1]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("2", "0", "1"), [2, 0, 1]),
        (("LABEL_0", "LABEL_1"), ("no", "yes"), None),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),
        (("a", "b"), ("a", "c"), None),
        (("a", "b"), ("a", "b", "c"), None),
        ((), ("a", "b"), None),
    ],
)
def test_rows_are_matched_by_name(own, wanted, rows):
    assert matching_rows(own, wanted) == rows


def test_labels_take_the_order_of_a_head_that_knows_them():
    assert in_own_order(("positive", "negative"), ("NEGATIVE", "POSITIVE")) == ("negative", "positive")
    assert in_own_order(("b", "a", "c"), ("c", "b", "a")) == ("c", "b", "a")
    assert in_own_order(("b", "a"), ("x", "y")) == ("b", "a")


def models(size: int):
    bert = BertConfig(vocab_size=9, num_labels=size, max_position_embeddings=8, **SMALL)
    yield BertForSequenceClassification(bert), ["classifier"]
    roberta = RobertaConfig(vocab_size=9, num_labels=size, max_position_embeddings=8, **SMALL)
    yield RobertaForSequenceClassification(roberta), ["classifier.out_proj"]
    gpt = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8, num_labels=size)
    yield GPT2ForSequenceClassification(gpt), ["score"]
    deit = DeiTConfig(image_size=8, patch_size=4, num_labels=size, **SMALL)
    yield DeiTForImageClassificationWithTeacher(deit), ["cls_classifier", "distillation_classifier"]
    convnext = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, num_labels=size)
    yield ConvNextForImageClassification(convnext), ["classifier"]


@pytest.mark.parametrize("size", [3, 8])  # 8: the hidden layers of the head have as many outputs
def test_rows_move_and_nothing_else(size):
    order = [*range(1, size), 0]
    names = tuple(f"label {index}" for index in range(size))
    for model, heads in models(size):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        settle_head(model, HeadRows(names, tuple(names[row].upper() for row in order), chosen=True))
        for name, tensor in model.state_dict().items():
            moved = name.rpartition(".")[0] in heads
            assert torch.equal(tensor, before[name][order] if moved else before[name]), (type(model).__name__, name)
        assert not getattr(model, "new_weights", ())


def test_timm_heads_are_permuted():
    timm = pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    assert timm
    config = TimmWrapperConfig(architecture="resnet10t", num_labels=3, do_pooling=True)
    model = TimmWrapperForImageClassification(config)
    before = model.timm_model.fc.weight.clone()
    settle_head(model, HeadRows(("a", "b", "c"), ("c", "a", "b"), chosen=True))
    assert torch.equal(model.timm_model.fc.weight, before[[2, 0, 1]])


def test_a_head_for_other_labels_starts_anew(caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    for model, heads in models(3):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        settle_head(model, HeadRows(("joy", "fear", "anger"), ("sport", "money", "food"), chosen=True))
        assert "a new head" in caplog.text and "joy" in caplog.text and "sport" in caplog.text
        for name, tensor in model.state_dict().items():
            changed = name.rpartition(".")[0] in heads and name.endswith("weight")
            assert torch.equal(tensor, before[name]) is not changed, (type(model).__name__, name)
        assert {name.rpartition(".")[0] for name in model.new_weights} == set(heads)


def test_names_that_say_nothing_are_kept_for_names_that_the_recipe_chose(caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    rows = HeadRows(("LABEL_0", "LABEL_1"), ("no", "yes"), chosen=True)
    model = next(models(2))[0]
    before = model.classifier.weight.clone()
    assert torch.equal(settle_head(model, rows).classifier.weight, before) and "data.label_names" in caplog.text
    settle_head(model, HeadRows(rows.own, rows.wanted, chosen=False))
    assert not torch.equal(model.classifier.weight, before) and "data.label_names" in caplog.records[-1].getMessage()


def test_heads_that_are_new_are_left_alone(caplog):
    model = next(models(2))[0]
    before = model.classifier.weight.clone()
    note_new_weights(model, ["classifier.weight", "classifier.bias"])
    state = torch.get_rng_state()
    for rows in (None, HeadRows(("a", "b"), ("b", "a"), False), HeadRows(("a",), ("b", "a"), False)):
        settle_head(model, rows)
    assert torch.equal(model.classifier.weight, before) and torch.equal(torch.get_rng_state(), state)
    assert isinstance(model.classifier, nn.Linear) and not caplog.text
