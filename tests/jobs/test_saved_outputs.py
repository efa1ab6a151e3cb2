"""outputs/ of whole runs: the metrics and answers of the run follow from them, however the run came about."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score, log_loss
from small_runs import killed_and_resumed, read_rows
from tiers import long
from tiny_data import make_rows, write_csv

from sft_hf.core.run.folder import load_run_recipe
from sft_hf.core.run.outputs import read_outputs
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.results import ALL_OUTPUTS, write_report
from sft_hf.tasks.base import task_class


def outputs_of(result, split="test"):
    return read_outputs(result.output_dir / "outputs" / f"{split}.safetensors")


def test_one_label_per_row(make_recipe):
    result = finetune(
        make_recipe(techniques=["temperature_scaling"], data__validation_fraction=0.4, train__max_steps=4)
    )
    for split in ("validation", "test"):
        found, metrics = outputs_of(result, split), result.metrics[split]
        assert found.split == split and found.problem_type == "single_label_classification"
        assert accuracy_score(found.references, found.logits.argmax(axis=1)) == metrics["accuracy"]
        # before the temperature: that is the loss
        plain = torch.softmax(torch.from_numpy(found.logits), dim=1).double().numpy()
        labels = range(len(found.labels))
        assert log_loss(found.references, plain / plain.sum(1, keepdims=True), labels=labels) == pytest.approx(
            metrics["loss"], rel=1e-5
        )
    rows = read_rows(result.output_dir / "predictions.jsonl")
    config = json.loads((result.output_dir / "model" / "config.json").read_text())
    assert found.temperature == config["confidence_temperature"] != 1
    assert list(found.labels) == [config["id2label"][str(index)] for index in range(len(found.labels))]
    assert found.row_id.tolist() == [row["id"] for row in rows]
    assert found.probabilities().max(axis=1).tolist() == pytest.approx([row["confidence"] for row in rows], abs=1e-6)
    assert [found.labels[index] for index in found.references] == [row["reference"] for row in rows]


def test_any_number_of_labels(make_recipe, tmp_path):
    names = ["food", "sport", "money"]
    rows = [{**row, **{name: int(row["label"] == name) for name in names}} for row in make_rows(80, seed=1)]
    data = str(write_csv(tmp_path / "train.csv", [{k: v for k, v in row.items() if k != "label"} for row in rows]))
    result = finetune(make_recipe(data__name=data, data__label_column=names))
    for split in ("validation", "test"):
        found, metrics = outputs_of(result, split), result.metrics[split]
        predicted = torch.sigmoid(torch.from_numpy(found.logits)).numpy() >= found.threshold
        assert f1_score(found.references, predicted, average="micro", zero_division=0) == pytest.approx(
            metrics["micro_f1"], abs=1e-12
        )
        assert f1_score(found.references, predicted, average="macro", zero_division=0) == pytest.approx(
            metrics["macro_f1"], abs=1e-12
        )


def test_numbers_in_their_own_units(make_recipe, tmp_path):
    for split, count in (("train", 60), ("test", 24)):
        rows = [{"text": row["text"], "year": 1990 + 2.5 * len(row["text"].split())} for row in make_rows(count, count)]
        write_csv(tmp_path / "years" / f"{split}.csv", rows)
    task = {"name": "text_classification", "max_length": 32, "problem_type": "regression"}
    result = finetune(make_recipe(task=task, data__name=str(tmp_path / "years"), data__label_column="year"))
    found = outputs_of(result)
    errors = found.values.astype(np.float64) - found.references
    assert float(np.sqrt((errors**2).mean())) == pytest.approx(result.metrics["test"]["rmse"], rel=1e-12)
    assert found.labels == ("year",) and 1900 < float(found.references.mean()) < 2100


@pytest.mark.parametrize("kind", ["whisper", long("ctc")])
def test_hypotheses(make_speech_recipe, wav2vec2_checkpoint, kind):
    changes = {"model__name": str(wav2vec2_checkpoint)} if kind == "ctc" else {}
    result = finetune(make_speech_recipe(train__max_steps=3, eval__per_device_eval_batch_size=3, **changes))
    found, rows = outputs_of(result), read_rows(result.output_dir / "predictions.jsonl")
    recipe = load_run_recipe(result.output_dir)
    task, _ = task_class(recipe).restore(recipe, result.output_dir / "model")
    assert found.row_id.tolist() == [row["id"] for row in rows]
    for index, row in enumerate(rows):
        part = slice(found.offsets[index], found.offsets[index + 1])
        tokens, logprobs = found.token_ids[part].tolist(), found.logprobs[part].astype(np.float64)
        assert task.family.text(tokens) == row["prediction"]
        if kind == "ctc":
            spoken = [number for number, token in enumerate(tokens) if token != task.family.tokenizer.pad_token_id]
            logprobs = logprobs[spoken] if spoken else logprobs
        assert float(np.exp(logprobs.mean())) == pytest.approx(row["confidence"], rel=1e-5)


def test_a_test_without_labels_has_outputs(make_recipe, tmp_path):
    write_csv(tmp_path / "data" / "train.csv", make_rows(60, seed=1))
    write_csv(tmp_path / "data" / "test.csv", [{"text": row["text"]} for row in make_rows(9, seed=2)])
    result = finetune(make_recipe(data__name=str(tmp_path / "data"), train__max_steps=2))
    found, rows = outputs_of(result), read_rows(result.output_dir / "predictions.jsonl")
    assert found.references is None and len(found) == 9
    assert [found.labels[index] for index in found.logits.argmax(axis=1)] == [row["prediction"] for row in rows]
    assert outputs_of(result, "validation").references is not None


@pytest.mark.long
def test_a_run_that_died_leaves_the_same_files(make_recipe, tmp_path):
    whole = finetune(make_recipe(output_dir=str(tmp_path / "whole"), checkpoint__save_steps=4))
    resumed = killed_and_resumed(make_recipe(checkpoint__save_steps=4), 9, outputs=ALL_OUTPUTS)
    for split in ("validation", "test"):
        one, other = (run.output_dir / "outputs" / f"{split}.safetensors" for run in (whole, resumed))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.long
def test_two_processes_write_every_row_once(commands, recipe_file, tmp_path):
    found = {}
    for ranks in (1, 2):
        running = commands.start_ranks(
            ranks,
            "finetune",
            str(recipe_file),
            "train.max_steps=1",
            f"train.per_device_train_batch_size={8 // ranks}",
            "eval.baseline=none",
            "model.config_overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
            "--output-dir",
            str(tmp_path / str(ranks)),
        )
        assert [rank.wait() for rank in running] == [0] * ranks, running[0].said()
        found[ranks] = read_outputs(tmp_path / str(ranks) / "outputs" / "test.safetensors")
    assert found[1].row_id.tolist() == found[2].row_id.tolist()
    assert found[1].references.tolist() == found[2].references.tolist()
    np.testing.assert_allclose(found[1].logits, found[2].logits, atol=1e-4)


# --- the report --------------------------------------------------------------------------------------------------


def test_the_report_of_texts_comes_from_the_run_folder_alone(make_recipe, data_folder):
    with open(data_folder / "train.csv", encoding="utf-8") as file:
        lines = [line.rstrip("\n").rsplit(",", 1) for line in file][1:]
    rows = [{"text": text.strip('"'), "label": label} for text, label in lines]
    splits = {"train": Dataset.from_list(rows[:60]), "test": Dataset.from_list(rows[60:90])}
    result = finetune(make_recipe(train__max_steps=3), splits=splits)
    report = result.output_dir / "report.html"
    before = report.read_text()
    report.unlink()
    assert write_report(result.output_dir) == report
    assert report.read_text() == before and "ROC" in before


def test_a_report_says_that_pictures_are_gone(make_image_recipe, write_image_folder, tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        write_image_folder(tmp_path / "data" / split, count, seed=len(split))
    result = finetune(make_image_recipe(data__name=str(tmp_path / "data"), train__max_steps=1))
    before = (result.output_dir / "report.html").read_text()
    assert "without their content" not in before
    assert write_report(result.output_dir).read_text() == before
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    after = write_report(result.output_dir).read_text()
    assert "without their content" in after and "data:image" not in after and "ROC" in after
