"""Applying a model: the same answers in input order, whatever shares a batch, and no text read twice."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from torch.nn import functional

from sft_hf import inference
from sft_hf.inference import evaluate_run, open_trained, predict_inputs
from sft_hf.models import cpu_kernels
from sft_hf.run import finetune
from sft_hf.tasks import text_classification

MAX_LENGTH = 32  # of the recipe that `make_recipe` makes


@pytest.fixture(scope="module")
def texts():
    """300 of 1 to 60 words: some are cut."""
    generator = np.random.default_rng(0)
    words = "goal match team bank rate dollar bread cheese soup the a of and to unheard".split()
    return [" ".join(generator.choice(words, int(generator.integers(1, 61)))) for _ in range(300)]


@pytest.fixture
def file(texts, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def run(make_recipe):
    return finetune(make_recipe(train__num_train_epochs=1)).output_dir


def test_answers_do_not_depend_on_the_batch_and_keep_their_order(run, file, texts):
    alone = list(predict_inputs(run, [file], batch_size=1))
    assert [row["text"] for row in alone] == texts and [row["id"] for row in alone] == list(range(300))
    assert len({row["prediction"] for row in alone}) == 3
    for size in (3, 16, None):
        rows = list(predict_inputs(run, [file], batch_size=size))
        assert [(row["text"], row["prediction"]) for row in rows] == [(row["text"], row["prediction"]) for row in alone]
        assert [row["confidence"] for row in rows] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)


def test_answers_on_images_do_not_depend_on_the_batch(make_image_recipe, image_folder):
    run = finetune(make_image_recipe()).output_dir
    alone, *others = (list(predict_inputs(run, [str(image_folder)], batch_size=size)) for size in (1, 3, 16))
    for rows in others:
        assert [(row["image"], row["prediction"]) for row in rows] == [
            (row["image"], row["prediction"]) for row in alone
        ]
        assert [row["confidence"] for row in rows] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)


def test_bf16_predicts_with_the_fast_kernels_and_says_so(run, file, monkeypatch, caplog):
    called = []
    layer_norm = cpu_kernels.layer_norm

    def counted(*values, **named):
        called.append(values)
        return layer_norm(*values, **named)

    monkeypatch.setitem(cpu_kernels.KERNELS, functional.layer_norm, counted)
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, "sft_hf")
    plain = list(predict_inputs(run, [file]))
    assert not called and "float32" not in caplog.text
    fast = list(predict_inputs(run, [file], mixed_precision="bf16"))
    assert called and caplog.text.count("bf16: confidences may differ from float32's") == 1
    confidences = [[row["confidence"] for row in rows] for rows in (plain, fast)]
    assert confidences[0] != confidences[1]
    assert confidences[0] == pytest.approx(confidences[1], abs=0.02)
    same = sum(a["prediction"] == b["prediction"] for a, b in zip(plain, fast, strict=True))
    assert same > 0.95 * len(plain)  # others are as good as tied: the model has hardly been trained


@pytest.fixture
def shapes(monkeypatch):
    """(rows, width) of every forward pass."""
    found = []
    plain = text_classification.TextClassification.predict_batch

    def predict_batch(self, model, batch):
        found.append(tuple(batch["input_ids"].shape))
        return plain(self, model, batch)

    monkeypatch.setattr(text_classification.TextClassification, "predict_batch", predict_batch)
    return found


def test_batches_hold_so_many_tokens_whatever_their_number_of_rows(run, file, shapes, monkeypatch):
    monkeypatch.setattr(inference, "CPU_POSITIONS", 400)
    list(predict_inputs(run, [file]))
    assert sum(rows for rows, _ in shapes) == 300
    assert all(rows * width <= 400 for rows, width in shapes)
    assert max(rows for rows, _ in shapes) > 32  # of short texts, more than evaluation's rows in a batch
    assert any(width % 8 for _, width in shapes)  # what is predicted is padded no further than to the longest row
    shapes.clear()
    list(predict_inputs(run, [file], batch_size=6))
    assert all(rows == 6 for rows, _ in shapes)


def test_a_batch_is_no_larger_than_the_largest_of_the_runs_evaluation(make_recipe, file, shapes):
    run = finetune(make_recipe(train__max_steps=1, eval__per_device_eval_batch_size=2)).output_dir
    shapes.clear()
    list(predict_inputs(run, [file]))
    assert all(rows * width <= 2 * MAX_LENGTH for rows, width in shapes)


def test_evaluate_says_what_the_run_said(run, shapes):
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    shapes.clear()
    again = evaluate_run(run)
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert again["confusion_matrix"] == metrics["confusion_matrix"]


def test_a_large_file_is_read_in_pieces(run, texts, tmp_path, monkeypatch):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts * 10) + "\n")
    _, task, _ = open_trained(run)

    def pieces():
        return [[row["text"] for row in rows] for rows in task.read_inputs([str(path)])]

    assert list(map(len, pieces())) == [3000]
    monkeypatch.setattr(text_classification, "PREDICT_ROWS", 2000)
    assert list(map(len, pieces())) == [2000, 1000]
    monkeypatch.setattr(text_classification, "PREDICT_CHARACTERS", 1000)
    assert list(map(len, pieces())) == [1000, 1000, 1000]
    assert [text for piece in pieces() for text in piece] == texts * 10


def slow_tokenizer(fast, folder):
    """A tokenizer without Rust that splits as the tiny checkpoint's does."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    path = folder / "vocab.txt"
    vocabulary = fast.get_vocab()
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    return BertTokenizerLegacy(str(path), model_max_length=64)


@pytest.mark.parametrize("kind", ["fast", "slow"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("max_length", [8, 32, 60])
def test_tokens_and_what_was_cut_of_them_are_those_of_two_passes(run, texts, tmp_path, kind, columns, max_length):
    _, task, _ = open_trained(run)
    if kind == "slow":
        task.tokenizer = slow_tokenizer(task.tokenizer, tmp_path)
        assert not task.tokenizer.is_fast
    task.max_length = max_length
    chosen = [texts, texts[::-1]][:columns]
    options = {"return_attention_mask": False, "verbose": False}
    whole = task.tokenizer(*chosen, truncation=False, **options)
    expected = task.tokenizer(*chosen, truncation=True, max_length=max_length, **options)
    encoded, lost = task._encode(chosen)
    assert encoded == dict(expected)
    pairs = zip(whole["input_ids"], expected["input_ids"], strict=True)
    assert lost.tolist() == [len(a) - len(b) for a, b in pairs]
    assert 0 < (lost > 0).sum() < 300 or max_length != 32


def test_only_a_text_that_is_cut_is_tokenized_twice(run, texts):
    _, task, _ = open_trained(run)
    plain, read = task.tokenizer, []

    def tokenizer(batch, **options):
        read.extend(batch)
        return plain(batch, **options)

    task.tokenizer = tokenizer
    _, lost = task._encode([texts])
    assert len(read) == 300 + int((lost > 0).sum()) < 600
