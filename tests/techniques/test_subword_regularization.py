"""Tokens in two pieces: that spell the same, as often as asked, within the length that the task allows."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import BertTokenizerFast

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.jobs.finetune import finetune
from sft_hf.tasks.text.word_embeddings import word_tokenizer
from sft_hf.techniques.base import Context
from sft_hf.techniques.regularization.subword_regularization import (
    SubwordRegularization,
    SubwordRegularizationSettings,
    chosen,
)


def test_tokens_are_split_as_often_as_asked_and_no_more_than_there_is_room_for():
    generator = np.random.default_rng(0)
    possible = np.arange(1000) % 2 == 0
    found = np.mean([chosen(possible, 0.3, 1000, generator) for _ in range(50)], axis=0)
    assert found[1::2].max() == 0 and found[::2].mean() == pytest.approx(0.3, abs=0.01)
    assert chosen(possible, 0.3, 7, generator).sum() == 7
    assert chosen(possible, 0.0, 1000, generator).sum() == 0


PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "un",
    "##like",
    "unlike",
    "##li",
    "##ke",
    "u",
    "##nlike",
    "like",
]


class TextTask:
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(PIECES)})
    max_length = 6


def test_rows_keep_what_goes_along_and_their_length():
    technique = SubwordRegularization(
        SubwordRegularizationSettings(probability=1.0), Context(None, TextTask(), 1, 1, None, None, {})
    )
    row = {"input_ids": np.array([2, 7, 6, 12]), "token_type_ids": np.array([0, 0, 1, 1]), "labels": 5}
    changed = technique.change_row(row, np.random.default_rng(0))
    assert changed["input_ids"].tolist() in ([2, 5, 6, 8, 9, 12], [2, 10, 11, 8, 9, 12])
    assert changed["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1] and changed["labels"] == 5
    full = {"input_ids": np.array([2, 7, 7, 7, 7, 7]), "labels": 5}
    assert technique.change_row(full, np.random.default_rng(0))["input_ids"].tolist() == full["input_ids"].tolist()


def test_a_vocabulary_of_whole_words_is_refused():
    task = SimpleNamespace(tokenizer=word_tokenizer(["notebook", "note", "book"]), max_length=6)
    with pytest.raises(RecipeError, match="this vocabulary has only whole words"):
        SubwordRegularization(SubwordRegularizationSettings(), SimpleNamespace(task=task))


def test_a_run_sees_other_pieces_in_each_epoch(make_recipe, checkpoint, tmp_path, monkeypatch):
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
