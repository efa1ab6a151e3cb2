"""Tokens in two pieces: that spell the same, as often as asked, within the length that the task allows."""

import numpy as np
import pytest

from sft_hf import loop
from sft_hf.run import finetune
from sft_hf.techniques.base import Context
from sft_hf.techniques.subword_regularization import (
    SubwordRegularization,
    SubwordRegularizationSettings,
    chosen,
    splits_of,
)

WORDPIECE = {token: n for n, token in enumerate(["un", "##like", "unlike", "##li", "##ke", "u", "##nlike", "like"])}
BPE = {token: n for n, token in enumerate(["Ġun", "like", "Ġunlike", "li", "ke", "Ġ", "unlike"])}


@pytest.mark.parametrize(
    ("token", "vocabulary", "pairs"),
    [
        ("unlike", WORDPIECE, [("u", "##nlike"), ("un", "##like")]),
        ("##like", WORDPIECE, [("##li", "##ke")]),
        ("like", WORDPIECE, []),
        ("Ġunlike", BPE, [("Ġ", "unlike"), ("Ġun", "like")]),
        ("like", BPE, [("li", "ke")]),
    ],
)
def test_two_pieces_spell_the_token(token, vocabulary, pairs):
    wordpiece = vocabulary is WORDPIECE
    found = splits_of(token, vocabulary, wordpiece)
    assert found == [(vocabulary[first], vocabulary[second]) for first, second in pairs]


def test_tokens_are_split_as_often_as_asked_and_no_more_than_there_is_room_for():
    generator = np.random.default_rng(0)
    possible = np.arange(1000) % 2 == 0
    found = np.mean([chosen(possible, 0.3, 1000, generator) for _ in range(50)], axis=0)
    assert found[1::2].max() == 0 and found[::2].mean() == pytest.approx(0.3, abs=0.01)
    assert chosen(possible, 0.3, 7, generator).sum() == 7
    assert chosen(possible, 0.0, 1000, generator).sum() == 0


class Tokenizer:
    all_special_ids = (8,)

    def get_vocab(self):
        return {**WORDPIECE, "[CLS]": 8}


class TextTask:
    tokenizer = Tokenizer()
    max_length = 6


def test_rows_keep_what_goes_along_and_their_length():
    technique = SubwordRegularization(
        SubwordRegularizationSettings(probability=1.0), Context(None, TextTask(), 1, 1, None, None, {})
    )
    row = {"input_ids": np.array([8, 2, 1, 7]), "token_type_ids": np.array([0, 0, 1, 1]), "labels": 5}
    changed = technique.change_row(row, np.random.default_rng(0))
    assert changed["input_ids"].tolist() in ([8, 0, 1, 3, 4, 7], [8, 5, 6, 3, 4, 7])
    assert changed["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1] and changed["labels"] == 5
    full = {"input_ids": np.array([8, 2, 2, 2, 2, 2]), "labels": 5}
    assert technique.change_row(full, np.random.default_rng(0))["input_ids"].tolist() == full["input_ids"].tolist()


def test_a_run_sees_other_pieces_in_each_epoch(make_recipe, checkpoint, tmp_path, monkeypatch):
    from transformers import BertTokenizerFast

    seen = []
    plain = loop.train_step

    def watched(training, examples, window, state):
        seen.extend((state.epoch, row, tuple(examples.features[row]["input_ids"])) for row in window.rows())
        return plain(training, examples, window, state)

    monkeypatch.setattr(loop, "train_step", watched)
    import shutil

    model = shutil.copytree(checkpoint, tmp_path / "model")
    words = (model / "vocab.txt").read_text().split()
    words[-2:] = ["go", "##al"]  # in place of two words that are not needed
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(model)
    techniques = [{"name": "subword_regularization", "probability": 0.5}]
    finetune(make_recipe(model__name=str(model), techniques=techniques))
    rows = [{row: ids for epoch, row, ids in seen if epoch == number} for number in (0, 1)]
    assert rows[0].keys() == rows[1].keys() and rows[0] != rows[1]
    pair = (len(words) - 2, len(words) - 1)
    assert any(pair == ids[place : place + 2] for ids in rows[0].values() for place in range(len(ids)))
