"""Applying a model: the same answers in input order, whatever shares a batch, and no text read twice."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn import functional

from sft_hf.data.labels.label_map import LabelMap
from sft_hf.engine import evaluation, process
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run, open_trained
from sft_hf.jobs.run import predict_files
from sft_hf.models.cpu import kernels as cpu_kernels
from sft_hf.tasks import classification_scorer
from sft_hf.tasks.image.task import ImageClassification
from sft_hf.tasks.speech.task import SpeechRecognition
from sft_hf.tasks.text import reader as text_reader
from sft_hf.tasks.text import task as text_classification

MAX_LENGTH = 32  # of the recipe that `make_recipe` makes


@pytest.fixture
def file(texts, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def run(make_recipe):
    return finetune(make_recipe(train__num_train_epochs=1)).output_dir


def test_answers_do_not_depend_on_the_batch_and_keep_their_order(run, file, texts):
    alone = list(predict_files(run, [file], batch_size=1))
    assert [row["text"] for row in alone] == texts and [row["id"] for row in alone] == list(range(300))
    assert len({row["prediction"] for row in alone}) == 3
    for size in (3, 16, None):
        rows = list(predict_files(run, [file], batch_size=size))
        assert [(row["text"], row["prediction"]) for row in rows] == [(row["text"], row["prediction"]) for row in alone]
        assert [row["confidence"] for row in rows] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)


def test_answers_on_images_do_not_depend_on_the_batch(make_image_recipe, image_folder):
    run = finetune(make_image_recipe()).output_dir
    alone, *others = (list(predict_files(run, [str(image_folder)], batch_size=size)) for size in (1, 3, 16))
    for rows in others:
        assert [(row["image"], row["prediction"]) for row in rows] == [
            (row["image"], row["prediction"]) for row in alone
        ]
        assert [row["confidence"] for row in rows] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)


def test_bf16_predicts_with_the_fast_kernels(run, file, monkeypatch):
    called = []
    layer_norm = cpu_kernels.layer_norm

    def counted(*values, **named):
        called.append(values)
        return layer_norm(*values, **named)

    monkeypatch.setitem(cpu_kernels.KERNELS, functional.layer_norm, counted)
    monkeypatch.setattr(classification_scorer, "CLOSE", 0)
    plain = list(predict_files(run, [file], mixed_precision="no"))
    assert not called
    fast = list(predict_files(run, [file], mixed_precision="bf16"))
    assert called
    confidences = [[row["confidence"] for row in rows] for rows in (plain, fast)]
    assert confidences[0] != confidences[1]
    assert confidences[0] == pytest.approx(confidences[1], abs=0.02)


def test_close_calls_are_computed_again_in_float32(run, file, monkeypatch):
    """The model has hardly been trained: most of its answers are close calls."""
    plain = list(predict_files(run, [file], mixed_precision="no"))
    fast = list(predict_files(run, [file], mixed_precision="bf16"))
    assert [row["prediction"] for row in fast] == [row["prediction"] for row in plain]
    monkeypatch.setattr(classification_scorer, "CLOSE", 0)
    hasty = list(predict_files(run, [file], mixed_precision="bf16"))
    assert [row["confidence"] for row in hasty] != [row["confidence"] for row in fast]


def test_close_calls_are_those_near_a_border(monkeypatch):
    """By hand: `CLOSE` of the largest logit, 0.25 x 8, is 2."""
    monkeypatch.setattr(classification_scorer, "CLOSE", 0.25)
    scorer = classification_scorer.ClassificationScorer(LabelMap(("a", "b", "c")), multi_label=False)
    logits = torch.tensor([[8.0, 6.5, -8], [8, 5.5, -8], [-8, 1, 0], [-8, 3, 0]])
    assert scorer.close_calls({"logits": logits}).tolist() == [True, False, True, False]
    confidences = torch.softmax(logits, dim=1).amax(dim=1)
    for row in (1, 3):  # whether a model abstains is an answer, too
        scorer.confidence.threshold = float(confidences[row])
        assert scorer.close_calls({"logits": logits})[row]
    scorer.confidence.threshold = 0.1  # far below all of these confidences, whose borders are above -0.6
    assert scorer.close_calls({"logits": logits}).tolist() == [True, False, True, False]
    threshold = 1 / (1 + math.exp(-3))  # where the logit is 3
    scorer = classification_scorer.ClassificationScorer(
        LabelMap(("a", "b", "c")), multi_label=True, threshold=threshold
    )
    logits = torch.tensor([[8.0, 1.5, -8], [8, 0.5, -8], [8, 5.5, 0]])
    assert scorer.close_calls({"logits": logits}).tolist() == [True, False, False]


def test_texts_are_predicted_in_what_the_hardware_multiplies_and_others_in_float32(run, file, monkeypatch):
    asked = []
    build = process.build_accelerator

    def noted(precision, threads, **options):
        asked.append(precision)
        return build("no", threads, **options)

    monkeypatch.setattr(process, "build_accelerator", noted)
    list(predict_files(run, [file]))
    list(predict_files(run, [file], mixed_precision="no"))
    assert asked == ["auto", "no"]
    assert ImageClassification.predict_precision == SpeechRecognition.predict_precision == "no"


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
    monkeypatch.setattr(evaluation, "CPU_POSITIONS", 400)
    list(predict_files(run, [file], mixed_precision="no"))
    assert sum(rows for rows, _ in shapes) == 300
    assert all(rows * width <= 400 for rows, width in shapes)
    assert max(rows for rows, _ in shapes) > 32  # of short texts, more than evaluation's rows in a batch
    assert any(width % 8 for _, width in shapes)  # what is predicted is padded no further than to the longest row
    shapes.clear()
    list(predict_files(run, [file], batch_size=6, mixed_precision="no"))
    assert all(rows == 6 for rows, _ in shapes)


def test_a_batch_is_no_larger_than_the_largest_of_the_runs_evaluation(make_recipe, file, shapes):
    run = finetune(make_recipe(train__max_steps=1, eval__per_device_eval_batch_size=2)).output_dir
    shapes.clear()
    list(predict_files(run, [file]))
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
        return [[one.columns["text"] for one in chunk] for chunk in task.reader.read_inputs([str(path)])]

    assert list(map(len, pieces())) == [3000]
    monkeypatch.setattr(text_reader, "PREDICT_ROWS", 2000)
    assert list(map(len, pieces())) == [2000, 1000]
    monkeypatch.setattr(text_reader, "PREDICT_CHARACTERS", 1000)
    assert max(sum(map(len, piece[:-1])) for piece in pieces()) < 1000
    assert [text for piece in pieces() for text in piece] == texts * 10
