"""Whole runs on labels that are not one name per row: a test without labels, 0 and 1, a trained head's own order."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from small_runs import read_rows
from tiers import long
from tiny_data import make_rows, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sft_hf.core.errors import DataError
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.results import write_report
from sft_hf.studies.check import check


@pytest.mark.parametrize("hidden", ["-1", long(""), long(None)])
def test_a_test_without_labels_is_predicted_and_not_scored(make_recipe, tmp_path, caplog, hidden):
    caplog.set_level(logging.INFO, "sft_hf")
    folder = tmp_path / "data"
    write_csv(folder / "train.csv", make_rows(60, seed=1))
    test = [{**row, "label": hidden} if hidden is not None else {"text": row["text"]} for row in make_rows(9, seed=2)]
    write_csv(folder / "test.csv", test)
    recipe = make_recipe(data__name=str(folder), train__max_steps=4)
    result = finetune(recipe)
    assert "test" not in result.metrics and result.metrics["validation"]["num_examples"] == 6
    assert result.metrics["data"]["splits"]["test"] == {
        **result.metrics["data"]["splits"]["test"],
        "num_examples": 9,
        "unlabelled": True,
    }
    assert result.metrics["baseline"]["split"] == "validation"
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert [row["id"] for row in rows] == list(range(9))
    assert all(set(row) == {"id", "text", "prediction", "confidence"} for row in rows)
    assert "no labels" in caplog.text
    report, card = result.output_dir / "report.html", result.output_dir / "model" / "README.md"
    assert "test split has no labels" in report.read_text() and "test split has no labels" in card.read_text()
    if hidden == "-1":
        first = report.read_text()
        assert write_report(result.output_dir).read_text() == first
        with pytest.raises(DataError, match=r"test\.csv: its rows have no labels"):
            evaluate_run(result.output_dir)
        again = evaluate_run(result.output_dir, "validation")
        assert again["accuracy"] == result.metrics["validation"]["accuracy"]
        assert any("no labels" in line for line in check(make_recipe(data__name=str(folder))).passed)


def test_one_column_for_each_label(make_recipe, tmp_path):
    rows = [
        {"text": row["text"], **{name: int(row["label"] == name) for name in ("food", "sport", "never")}}
        for row in make_rows(60, seed=1)
    ]
    recipe = make_recipe(
        data__name=str(write_csv(tmp_path / "train.csv", rows)),
        data__label_column=["food", "sport", "never"],
        train__num_train_epochs=6,
    )
    result = finetune(recipe)
    config = json.loads((result.output_dir / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "food", "1": "sport", "2": "never"}
    assert config["problem_type"] == "multi_label_classification"
    assert result.metrics["test"]["micro_f1"] > 0.6
    assert evaluate_run(result.output_dir)["micro_f1"] == result.metrics["test"]["micro_f1"]
    assert all(isinstance(row["reference"], list) for row in read_rows(result.output_dir / "predictions.jsonl"))


@pytest.fixture
def trained(make_recipe, tmp_path):
    """A model that knows "food" and "sport", in this order."""
    data = write_csv(tmp_path / "first.csv", make_rows(80, seed=3, topics=("food", "sport")))
    recipe = make_recipe(data__name=str(data), output_dir=str(tmp_path / "first"), train__num_train_epochs=8)
    assert finetune(recipe).metrics["test"]["accuracy"] == 1.0
    return tmp_path / "first" / "model"


@pytest.mark.parametrize(
    ("spelling", "label_names"),
    [
        long((str.upper, None)),
        long((str.title, ["Sport", "Food"])),
        long((str, ["sport", "food"])),
        (lambda name: name + " ", None),
    ],
)
def test_a_trained_head_keeps_its_meaning(trained, make_recipe, tmp_path, spelling, label_names):
    rows = [{**row, "label": spelling(row["label"])} for row in make_rows(40, seed=4, topics=("sport", "food"))]
    data = write_csv(tmp_path / "again.csv", rows)
    recipe = make_recipe(
        model__name=str(trained),
        data__name=str(data),
        data__label_names=label_names,
        train__max_steps=1,
        optim__learning_rate=1e-7,
    )
    result = finetune(recipe)
    assert result.metrics["test"]["accuracy"] == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(result.output_dir / "model")
    tokenizer = AutoTokenizer.from_pretrained(result.output_dir / "model")
    inputs = tokenizer("bread cheese soup", return_tensors="pt")
    with torch.no_grad():
        assert model.config.id2label[int(model(**inputs).logits.argmax())] == spelling("food")


def test_an_adapter_on_a_trained_head_opens_again(trained, make_recipe, tmp_path):
    pytest.importorskip("peft")
    rows = make_rows(40, seed=4, topics=("sport", "food"))
    for names in (["sport", "food"], None):
        labels = {"sport": "sport", "food": "food"} if names else {"sport": "good", "food": "bad"}
        data = write_csv(tmp_path / "x.csv", [{**row, "label": labels[row["label"]]} for row in rows])
        recipe = make_recipe(
            model__name=str(trained),
            data__name=str(data),
            data__label_names=names,
            train__max_steps=2,
            peft={"peft_type": "LORA", "r": 2},
            output_dir=str(tmp_path / f"adapter-{names is None}"),
        )
        result = finetune(recipe)
        assert evaluate_run(result.output_dir)["accuracy"] == result.metrics["test"]["accuracy"]


def test_streams_of_joined_labels(make_recipe, tmp_path):
    rows = [{**row, "label": f"{row['label']}|any"} for row in make_rows(40, seed=4)]
    write_csv(tmp_path / "data" / "train.csv", rows)
    write_csv(tmp_path / "data" / "test.csv", rows[:9])
    recipe = make_recipe(
        data__name=str(tmp_path / "data"),
        data__streaming=True,
        data__validation_fraction=0.0,
        data__label_separator="bar",
        data__label_names=["any", "sport", "money", "food"],
        train__max_steps=2,
    )
    metrics = finetune(recipe).metrics
    assert metrics["primary_metric"] == "micro_f1" and metrics["test"]["num_examples"] == 9


def test_pictures_without_labels_in_test(make_image_recipe, make_image, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    for split, count in (("train", 12), ("test", 4)):
        rows = []
        for index in range(count):
            colour = ("blue", "red")[index % 2]
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            make_image(colour, index).save(tmp_path / "data" / split / f"{index}.png")
            rows.append({"file_name": f"{index}.png", "label": colour})
        keep = ("file_name", "label") if split == "train" else ("file_name",)
        write_csv(tmp_path / "data" / split / "metadata.csv", [{key: row[key] for key in keep} for row in rows])
    recipe = make_image_recipe(data__name=str(tmp_path / "data"), data__validation_fraction=0.0, train__max_steps=1)
    result = finetune(recipe)
    assert "test" not in result.metrics and "validation" not in result.metrics and "baseline" not in result.metrics
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert len(rows) == 4 and all("reference" not in row for row in rows)
    assert "no labels" in caplog.text and (result.output_dir / "report.html").is_file()
    assert "test split has no labels" in (result.output_dir / "model" / "README.md").read_text()
