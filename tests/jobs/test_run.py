"""A whole run: the folder it leaves, what opens it, resuming, refusing to touch what is there."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import killed_and_resumed, read_rows
from tiers import quick
from tiny_recipes import tiny_recipe

from sft_hf.core.errors import DataError, RecipeError, RunFolderError, StorageError
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import answers, evaluate_run
from sft_hf.jobs.run import predict_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory, checkpoint, data_folder):
    """A finished run that several tests look at, and none changes."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    return finetune(tiny_recipe("text_classification", checkpoint, data_folder, folder, train__num_train_epochs=3))


def test_metrics_are_those_of_the_contract(trained):
    metrics = json.loads((trained.output_dir / "metrics.json").read_text())
    assert metrics == trained.metrics
    assert metrics["task"] == "text_classification"
    assert metrics["primary_metric"] == "accuracy"
    assert metrics["test"]["accuracy"] > 0.9
    low, high = metrics["test"]["accuracy_ci95"]
    assert low <= metrics["test"]["accuracy"] <= high
    assert metrics["test"]["num_examples"] == 30
    assert metrics["validation"]["num_examples"] == 9
    assert {"runtime_seconds", "examples_per_second", "num_steps", "num_epochs", "final_loss", "peak_memory_bytes"} <= (
        metrics["train"].keys()
    )
    assert metrics["model"]["num_parameters"] == metrics["model"]["num_trainable_parameters"] > 0
    assert metrics["seed"] == 42
    assert metrics["environment"]["num_processes"] == 1
    assert np.sum(metrics["test"]["confusion_matrix"]) == 30
    assert [row["label"] for row in metrics["test"]["per_class"]] == ["sport", "money", "food"]


def test_predictions_give_the_accuracy_that_metrics_state(trained):
    rows = read_rows(trained.output_dir / "predictions.jsonl")
    assert [row["id"] for row in rows] == list(range(30))
    assert np.mean([row["reference"] == row["prediction"] for row in rows]) == pytest.approx(
        trained.metrics["test"]["accuracy"]
    )
    assert all(0 < row["confidence"] <= 1 for row in rows)


def test_a_transformers_pipeline_gives_the_same_labels_and_scores(trained, data_folder):
    import csv

    from transformers import pipeline

    classify = pipeline("text-classification", model=str(trained.output_dir / "model"), device="cpu")
    with open(data_folder / "test.csv", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    ours = read_rows(trained.output_dir / "predictions.jsonl")
    predicted = list(predict_files(trained.output_dir, texts, mixed_precision="no"))
    for text, row, new in zip(texts, ours, predicted, strict=True):
        (theirs,) = classify([text], truncation=True)
        assert theirs["label"] == row["prediction"] == new["prediction"]
        assert theirs["score"] == pytest.approx(row["confidence"], abs=1e-5)
        assert theirs["score"] == pytest.approx(new["confidence"], abs=1e-5)


def test_evaluate_gives_the_metrics_of_the_run_again(trained):
    for split in ("test", "validation"):
        again = evaluate_run(trained.output_dir, split)
        assert again["accuracy"] == trained.metrics[split]["accuracy"]
        assert again["loss"] == pytest.approx(trained.metrics[split]["loss"], rel=1e-6)
    with pytest.raises(DataError, match="did you mean test"):
        evaluate_run(trained.output_dir, "tset")


def test_predict_takes_texts_files_and_standard_input(trained, tmp_path, monkeypatch):
    import io

    (tmp_path / "a.txt").write_text("goal match team of win\nbank rate the dollar loss\n")
    (tmp_path / "b.csv").write_text('other,text\n1,bread cheese and soup salt\n2,"team coach, goal win"\n')
    (tmp_path / "c.jsonl").write_text('{"text": "soup dinner cook apple"}\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("stock market share profit\n"))
    inputs = [
        "player score goal team",
        str(tmp_path / "a.txt"),
        str(tmp_path / "b.csv"),
        str(tmp_path / "c.jsonl"),
        sys.stdin,
    ]
    rows = list(answers(trained.output_dir, inputs, batch_size=2, mixed_precision="no"))
    texts = [
        "player score goal team",
        "goal match team of win",
        "bank rate the dollar loss",
        "bread cheese and soup salt",
        "team coach, goal win",
        "soup dinner cook apple",
        "stock market share profit",
    ]
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows] == list(range(7))
    assert [row.get("row") for row in rows] == [None, 0, 1, 0, 1, 0, 0] and rows[6]["path"] == "-"
    assert [row["prediction"] for row in rows] == ["sport", "sport", "money", "food", "sport", "food", "money"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "txt\nx\n", ["a.csv", "text", "txt"]),
        ("a.csv", "text,x\n,1\n  ,2\n", ["a.csv row 0", "a.csv row 1", "text"]),
        ("a.csv", "text\n", ["a.csv"]),
        ("a.xyz.csv", "", ["a.xyz.csv"]),
        (None, "   ", ["empty"]),
        (None, "missing.csv", ["missing.csv"]),
    ],
)
def test_predict_says_what_is_wrong_with_its_input(trained, tmp_path, name, content, words):
    argument = content
    if name:
        (tmp_path / name).write_text(content)
        argument = str(tmp_path / name)
    with pytest.raises(DataError) as caught:
        list(predict_files(trained.output_dir, [argument]))
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_saved_recipe_gives_the_same_run_again(trained, tmp_path):
    recipe = load_recipe(str(trained.output_dir / "recipe.yaml"), [f"output_dir={tmp_path / 'again'}"])
    again = finetune(recipe)
    first, second = (
        load_file(folder / "model" / "model.safetensors") for folder in (trained.output_dir, again.output_dir)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_folder_is_not_touched_without_a_word(make_recipe, trained, tmp_path):
    from pathlib import Path

    def contents(folder):
        return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}

    before = contents(trained.output_dir)
    taken = make_recipe(output_dir=str(trained.output_dir))
    with pytest.raises(RunFolderError, match=r"--resume.*--overwrite"):
        finetune(taken)
    with pytest.raises(RunFolderError, match="cannot resume with another recipe"):
        finetune(taken, resume=True)
    with pytest.raises(DataError, match="labl"):  # overwriting begins only once the data have been read
        finetune(make_recipe(output_dir=str(trained.output_dir), data__label_column="labl"), overwrite=True)
    assert contents(trained.output_dir) == before

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="is not empty"):
        finetune(make_recipe(output_dir=str(tmp_path / "full")))
    with pytest.raises(RunFolderError, match="no run to resume"):
        finetune(make_recipe(output_dir=str(tmp_path / "none")), resume=True)


def test_overwrite_replaces_the_run_and_nothing_else(make_recipe, tmp_path):
    recipe = make_recipe(train__max_steps=1)
    finetune(recipe)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    finetune(make_recipe(train__max_steps=2), overwrite=True)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train"]["num_steps"] == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


DEATHS = [(step, optimizer) for step in (4, 9, 13) for optimizer in ("adamw", "adafactor", "sgd")]


@pytest.mark.parametrize(("stop_after", "optimizer"), quick([(9, "adamw"), (13, "sgd")], DEATHS))
def test_a_run_that_died_resumes_to_the_same_bits(make_recipe, tmp_path, stop_after, optimizer):
    settings = {"checkpoint__save_steps": 4, "eval__eval_steps": 5, "optim__name": optimizer, "train__logging_steps": 3}
    whole = finetune(make_recipe(output_dir=str(tmp_path / "whole"), **settings))

    resumed = killed_and_resumed(make_recipe(output_dir=str(tmp_path / "died"), **settings), stop_after)

    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole.output_dir / "predictions.jsonl").read_text() == (
        resumed.output_dir / "predictions.jsonl"
    ).read_text()

    def log(run):
        lines = read_rows(run.output_dir / "log.jsonl")
        return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]

    assert log(whole) == log(resumed)


def test_old_checkpoints_go_only_as_far_as_the_limit_says(make_recipe, tmp_path):
    finetune(make_recipe(checkpoint__save_steps=4, checkpoint__save_total_limit=2))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000020", "step-000022"]  # and no best weights: they stand in model/


def test_nothing_in_the_folder_is_a_pickle(make_recipe, tmp_path):
    finetune(make_recipe())
    names = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".yaml", ".safetensors", ".txt", ".md", ".html", ".jinja"}


def test_the_best_weights_by_validation_are_kept(make_recipe, tmp_path, monkeypatch):
    """The rate is so high at the end that the last weights are worse: validation says which were best."""
    scores = iter([0.2, 0.9, 0.5, 0.4])
    from sft_hf.tasks.classification_scorer import ClassificationScorer

    plain = ClassificationScorer.score
    seen = []

    def score(self, outputs, examples, confidence_samples=0):
        metrics = plain(self, outputs, examples, confidence_samples)
        if not confidence_samples:
            metrics["accuracy"] = next(scores)
            seen.append(outputs["logits"].clone())
        else:
            seen.append(outputs["logits"].clone())
        return metrics

    monkeypatch.setattr(ClassificationScorer, "score", score)
    result = finetune(make_recipe(train__max_steps=8, eval__eval_steps=2))
    assert result.metrics["train"]["best_step"] == 4
    assert torch.allclose(seen[4], seen[1], atol=1e-5)  # the final validation is that of step 4
    assert not torch.allclose(seen[4], seen[3], atol=1e-5)


def test_early_stopping_counts_evaluations_without_a_better_one(make_recipe, monkeypatch):
    from sft_hf.tasks.classification_scorer import ClassificationScorer

    scores = iter([0.5, 0.6, 0.6, 0.5, 0.9])
    plain = ClassificationScorer.score

    def score(self, outputs, examples, confidence_samples=0):
        metrics = plain(self, outputs, examples, confidence_samples)
        return metrics if confidence_samples else {**metrics, "accuracy": next(scores), "loss": 1.0}

    monkeypatch.setattr(ClassificationScorer, "score", score)
    result = finetune(make_recipe(train__max_steps=16, eval__eval_steps=2, eval__early_stopping_patience=2))
    assert result.metrics["train"]["num_steps"] == 8  # the tie is no better metric
    assert result.metrics["train"]["best_step"] == 6  # but the later of two


def test_test_is_scored_once_and_after_every_choice(make_recipe, monkeypatch):
    from sft_hf.tasks.classification_scorer import ClassificationScorer

    order = []
    plain_score, plain_tune = ClassificationScorer.score, ClassificationScorer.tune
    monkeypatch.setattr(
        ClassificationScorer,
        "score",
        lambda self, outputs, examples, confidence_samples=0: (
            order.append(("score", len(examples))),
            plain_score(self, outputs, examples, confidence_samples),
        )[1],
    )
    monkeypatch.setattr(
        ClassificationScorer,
        "tune",
        lambda self, outputs, examples: (order.append(("tune", len(examples))), plain_tune(self, outputs, examples))[1],
    )
    finetune(make_recipe(eval__baseline="none"))  # which would be scored as well
    assert order.count(("score", 30)) == 1
    assert order[-1] == ("score", 30)
    assert ("tune", 30) not in order


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval__metric_for_best_model": "acuracy"}, ["metric_for_best_model", "did you mean accuracy"]),
        ({"train__mixed_precision": "fp16"}, ["fp16", "GPU"]),
        ({"model__config_overrides": {"hidden_dropout": 0.1}}, ["hidden_dropout", "did you mean hidden_dropout_prob"]),
        (
            {"data__validation_fraction": 0, "eval__early_stopping_patience": 1},
            ["early_stopping_patience", "validation split"],
        ),
        (
            {
                "data__streaming": True,
                "data__validation_fraction": 0,
                "data__label_names": ["sport", "money", "food"],
            },
            ["data.streaming", "train.max_steps"],
        ),
    ],
)
def test_settings_that_cannot_be_met_are_recipe_errors(make_recipe, changes, words):
    with pytest.raises(RecipeError) as caught:
        finetune(make_recipe(**changes))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_full_disk_is_a_storage_error_and_spares_the_last_checkpoint(make_recipe, tmp_path, monkeypatch):
    import errno

    from sft_hf.engine.resume import checkpoint
    from sft_hf.engine.resume.checkpoint import newest_checkpoint

    plain, saves = checkpoint.save_model, []

    def full(model, path):
        if "step-" in path:
            saves.append(path)
            if len(saves) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        return plain(model, path)

    monkeypatch.setattr(checkpoint, "save_model", full)
    with pytest.raises(StorageError, match="No space left"):
        finetune(make_recipe(checkpoint__save_steps=4))
    found, passed_over = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and found.name == "step-000008" and not passed_over


def test_without_validation_the_last_weights_are_taken(make_recipe):
    result = finetune(make_recipe(data__validation_fraction=0, train__max_steps=3))
    assert "validation" not in result.metrics
    assert result.metrics["train"]["best_step"] is None
    assert math.isfinite(result.metrics["train"]["final_loss"])
