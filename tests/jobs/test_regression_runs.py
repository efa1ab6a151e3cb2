"""Runs that predict numbers: what they learn, save and say, and what they refuse."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from small_runs import interrupted_and_resumed, prepared, read_rows, same, weights
from tiers import long, quick
from tiny_data import make_rows, write_csv
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from sft_hf.core.errors import DataError, RecipeError
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.run import predict_files

TASK = {"name": "text_classification", "max_length": 32, "problem_type": "regression"}


def lengths(count, seed, **columns):
    """Sentences, and how many words they have: a number far from 0, that varies by a hundredth of it."""
    rows = []
    for row in make_rows(count, seed):
        words = len(row["text"].split())
        made = {name: make(words) for name, make in columns.items()} or {"year": f"{1990 + 2.5 * words:.3f}"}
        rows.append({"text": row["text"], **made})
    return rows


def write_splits(folder, train=60, test=24, **columns):
    write_csv(folder / "train.csv", lengths(train, 1, **columns))
    write_csv(folder / "test.csv", lengths(test, 2, **columns))
    return str(folder)


@pytest.fixture
def years(tmp_path):
    return write_splits(tmp_path / "years")


@pytest.fixture
def make(make_recipe):
    """A recipe of regression on texts."""
    return lambda data, column="year", **changes: make_recipe(
        task=TASK, data__name=data, data__label_column=column, **{"optim__learning_rate": 5e-3, **changes}
    )


def plain_answers(folder, texts):
    """What plain Transformers answers, without anything of this package."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return model(**batch).logits, model.config


def test_a_saved_model_answers_in_the_units_of_the_data(make, years, tmp_path):
    result = finetune(make(years, train__num_train_epochs=6))
    metrics, rows = result.metrics["test"], read_rows(result.output_dir / "predictions.jsonl")
    assert result.metrics["primary_metric"] == "rmse"
    assert metrics["rmse"] < result.metrics["baseline"]["metrics"]["rmse"]
    assert result.metrics["baseline"]["name"] == "mean of train" and "mae_ci95" in result.metrics["baseline"]["metrics"]
    assert {"mse_ci95", "mae", "pearson", "spearman_ci95", "r2"} <= metrics.keys() and "ece" not in metrics
    assert set(rows[0]) == {"id", "text", "reference", "prediction"}

    answers, config = plain_answers(result.output_dir / "model", [row["text"] for row in lengths(24, 2)])
    assert answers[:, 0].tolist() == pytest.approx([row["prediction"] for row in rows], abs=2e-3)
    assert (config.problem_type, config.num_labels, config.id2label) == ("regression", 1, {0: "year"})
    off = [row["prediction"] - row["reference"] for row in rows]
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(off))), rel=1e-5)

    (answer,) = predict_files(result.output_dir, ["goal match team"])
    assert 1980 < answer["prediction"] < 2060 and "confidence" not in answer


def test_evaluate_gives_the_metrics_of_the_run(make, years):
    result = finetune(make(years, train__max_steps=2))
    again = evaluate_run(result.output_dir)
    assert {name: again[name] for name in result.metrics["test"]} == result.metrics["test"]


def test_a_resumed_run_is_the_same_run(make, years, tmp_path):
    changes = {"checkpoint__save_steps": 3, "train__max_steps": 8, "eval__eval_steps": 4}
    whole = finetune(make(years, output_dir=str(tmp_path / "whole"), **changes))
    cut = interrupted_and_resumed(make(years, output_dir=str(tmp_path / "cut"), **changes), stop_at=5)
    assert same(weights(whole.output_dir), weights(cut.output_dir))
    assert whole.metrics["test"] == cut.metrics["test"]


def test_several_targets_of_different_units(make, tmp_path):
    data = write_splits(tmp_path / "two", targets=lambda words: json.dumps([words / 10, 1e5 - 7000.0 * words]))
    names = ["short", "long"]
    recipe = make(data, "targets", data__label_names=names, train__num_train_epochs=6)
    result = finetune(recipe)
    metrics, rows = result.metrics["test"], read_rows(result.output_dir / "predictions.jsonl")
    assert result.metrics["primary_metric"] == "standardized_rmse" and metrics["standardized_rmse"] < 0.9
    assert [entry["target"] for entry in metrics["per_target"]] == names
    assert all(entry["pearson"] > 0.3 for entry in metrics["per_target"])
    assert set(rows[0]["prediction"]) == set(rows[0]["reference"]) == set(names)
    answers, config = plain_answers(result.output_dir / "model", [row["text"] for row in lengths(24, 2)])
    assert config.id2label == dict(enumerate(names))
    for place, name in enumerate(names):
        assert answers[:, place].tolist() == pytest.approx([row["prediction"][name] for row in rows], rel=1e-4)
    assert result.metrics["data"]["splits"]["train"]["targets"]["short"]["max"] <= 2.1


def test_names_of_targets_without_label_names(make, tmp_path):
    data = write_splits(tmp_path / "two", 20, 6, y=lambda words: f"[{words}  {words * 2}.5]")
    run = prepared(make(data, "y"))
    assert run.task.names == ["y_0", "y_1"] and run.examples["test"].references[0][1] % 1 == 0.5


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about Transformers
@pytest.mark.parametrize("output", ["merged", "adapter"])
def test_adapters_answer_in_the_units_of_the_data(output, make, years, checkpoint):
    from peft import PeftModel

    recipe = make(years, peft={"peft_type": "LORA", "output": output}, train__max_steps=4, optim__learning_rate=0.05)
    result = finetune(recipe)
    texts, rows = [row["text"] for row in lengths(24, 2)], read_rows(result.output_dir / "predictions.jsonl")
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    model = PeftModel.from_pretrained(base, result.output_dir / "adapter").eval()
    batch = AutoTokenizer.from_pretrained(checkpoint)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        answers = model(**batch).logits[:, 0].tolist()
    expected = [row["prediction"] for row in rows]
    assert answers == pytest.approx(expected, abs=2e-3)
    assert [row["prediction"] for row in predict_files(result.output_dir, texts)] == pytest.approx(expected, abs=2e-3)


def test_frozen_features_and_word_vectors(make, years, tmp_path):
    frozen = finetune(make(years, train__freeze=["backbone"], train__max_steps=4, output_dir=str(tmp_path / "frozen")))
    assert frozen.metrics["test"]["rmse"] > 0
    words = sorted({word for row in lengths(60, 1) for word in row["text"].split()})
    vectors = tmp_path / "vectors.vec"
    generator = np.random.default_rng(0)
    lines = [f"{word} {' '.join(f'{value:.4f}' for value in generator.normal(size=8))}" for word in words]
    vectors.write_text(f"{len(words)} 8\n" + "\n".join(lines) + "\n")
    result = finetune(make(years, model__name=str(vectors), train__max_steps=4, output_dir=str(tmp_path / "words")))
    rows = read_rows(result.output_dir / "predictions.jsonl")
    answers, config = plain_answers(result.output_dir / "model", [row["text"] for row in lengths(24, 2)])
    assert config.model_type == "word_embeddings"
    assert answers[:, 0].tolist() == pytest.approx([row["prediction"] for row in rows], abs=2e-3)


def test_a_head_without_a_bias(make, years, tmp_path, checkpoint, caplog):
    from transformers import LlamaConfig, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, initializer_range=0.1, **sizes)
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    prepared(make(years, model__name=str(tmp_path / "llama")))
    assert "no bias" in caplog.text and "subtract 20" in caplog.text
    caplog.clear()
    data = write_splits(tmp_path / "words", y=lambda words: words * 100)
    result = finetune(make(data, "y", model__name=str(tmp_path / "llama"), train__num_train_epochs=8))
    metrics = result.metrics["test"]
    assert metrics["rmse"] < result.metrics["baseline"]["metrics"]["rmse"] and "no bias" not in caplog.text
    assert evaluate_run(result.output_dir)["loss"] == pytest.approx(metrics["loss"], rel=1e-4)


def test_a_model_that_predicts_already_starts_from_what_it_learned(make, years, tmp_path, caplog):
    first = finetune(make(years, train__num_train_epochs=6, output_dir=str(tmp_path / "first")))
    changes = {"model__name": str(first.output_dir / "model"), "output_dir": str(tmp_path / "second")}
    with caplog.at_level(logging.INFO, "sft_hf"):
        second = finetune(make(years, train__max_steps=1, optim__learning_rate=1e-9, **changes))
    assert "output layer is kept" in caplog.text
    assert second.metrics["test"]["rmse"] == pytest.approx(first.metrics["test"]["rmse"], rel=1e-3)


def test_a_classifier_gives_up_its_classes(make, make_recipe, years, tmp_path):
    data = write_splits(tmp_path / "two", 20, 6, y=lambda words: f"[{words}, {words * 2}]")
    recipe = make_recipe(output_dir=str(tmp_path / "classes"), train__max_steps=1, data__label_names=None)
    classes = finetune(recipe).output_dir / "model"
    run = prepared(make(data, "y", model__name=str(classes), data__label_names=["a", "b"]))
    assert run.training.model.config.problem_type == "regression"
    assert "classifier.weight" in run.training.model.new_weights


@pytest.fixture
def grey_folder(tmp_path):
    """Grey pictures, and how bright they are."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        folder = tmp_path / "grey" / split
        folder.mkdir(parents=True)
        rows = []
        for index in range(count):
            light = float(generator.uniform(20, 235))
            pixels = np.clip(light + generator.normal(0, 10, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            rows.append(
                {"file_name": f"{index}.png", "light": "?" if split == "train" and index == 3 else f"{light:.2f}"}
            )
        write_csv(folder / "metadata.csv", rows)
    return tmp_path / "grey"


@pytest.mark.parametrize("kind", ["image_checkpoint", long("cnn_checkpoint")])
def test_pictures(kind, make_image_recipe, grey_folder, request):
    from PIL import Image
    from transformers import AutoImageProcessor

    recipe = make_image_recipe(
        task={"name": "image_classification", "problem_type": "regression"},
        model__name=str(request.getfixturevalue(kind)),
        data__name=str(grey_folder),
        data__label_column="light",
        data__on_bad_row="skip",
        train__max_steps=3,
    )
    result = finetune(recipe)
    assert any("1 of 22 rows skipped" in note or "1 of 2 rows" in note for note in result.metrics["data"]["notes"])
    rows = read_rows(result.output_dir / "predictions.jsonl")
    model = AutoModelForImageClassification.from_pretrained(result.output_dir / "model").eval()
    pictures = [Image.open(grey_folder / "test" / f"{index}.png") for index in range(8)]
    pixels = AutoImageProcessor.from_pretrained(result.output_dir / "model", backend="torchvision")(
        pictures, return_tensors="pt"
    )
    with torch.no_grad():
        answers = model(**pixels).logits[:, 0].tolist()
    assert answers == pytest.approx([row["prediction"] for row in rows], abs=0.05)
    (answer,) = predict_files(result.output_dir, [str(grey_folder / "test" / "0.png")])
    assert answer["prediction"] == pytest.approx(rows[0]["prediction"], abs=0.05)


def test_streams(make, years):
    files = {"train": "train.csv", "validation": "test.csv"}
    recipe = make(years, data__streaming=True, train__max_steps=3, data__data_files=files)
    assert finetune(recipe).metrics["validation"]["rmse"] > 0


@pytest.mark.parametrize("metric", quick(["spearman", "mae"], ["pearson", "spearman", "r2", "mae", "loss"]))
def test_any_metric_chooses_the_weights(metric, make, years):
    result = finetune(make(years, eval__metric_for_best_model=metric, train__max_steps=4, eval__eval_steps=2))
    assert result.metrics["train"]["best_step"] in (2, 4)


def test_an_undefined_metric_is_worse_than_any_other(make, years, monkeypatch):
    from sft_hf.tasks.regression_scorer import RegressionScorer

    score, values = RegressionScorer.score, iter([None, -0.5, None, 0.5])

    def scored(self, outputs, examples, confidence_samples=0):
        found = score(self, outputs, examples, confidence_samples)
        return found if confidence_samples else {**found, "pearson": next(values)}

    monkeypatch.setattr(RegressionScorer, "score", scored)
    options = {"eval__metric_for_best_model": "pearson", "train__max_steps": 3, "eval__eval_steps": 1}
    result = finetune(make(years, **options))
    assert result.metrics["train"]["best_step"] == 2


def test_rows_are_held_out_of_every_fifth(make, years):
    run = prepared(make(years, data__validation_fraction=0.34))
    train = np.array(run.data.examples.references)[:, 0]
    held_out = np.array(run.examples["validation"].references)[:, 0]
    assert len(held_out) == 20 and abs(np.median(held_out) - np.median(train)) < 5
    assert held_out.min() < np.quantile(train, 0.2) and held_out.max() > np.quantile(train, 0.8)


def test_findings_tell_how_the_targets_are_spread(make, tmp_path):
    data = write_splits(tmp_path / "far", y=lambda words: 1e6 if words == 7 else words)
    texts = {finding.level: [] for finding in prepared(make(data, "y")).findings}
    for finding in prepared(make(data, "y")).findings:
        texts[finding.level].append(finding.text)
    assert any("ranges from" in text for text in texts["note"])
    assert any("always answering the mean of train" in text for text in texts["note"])
    ordinary = write_splits(tmp_path / "stars", stars=lambda words: 1 + words % 5)
    found = [finding.text for finding in prepared(make(ordinary, "stars")).findings]
    assert any("5 different values, all whole numbers" in text for text in found)


def test_an_outlier_is_named(make, tmp_path):
    rows = lengths(80, 1, y=lambda words: words)
    rows[17]["y"] = 1e6
    write_csv(tmp_path / "data" / "train.csv", rows)
    found = [f for f in prepared(make(str(tmp_path / "data"), "y")).findings if f.level == "warning"]
    assert any("1e+06 in row 17" in finding.text for finding in found)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (lambda words: "" if words == 9 else words, r"train.csv.*on_bad_row"),
        (lambda words: "four" if words == 9 else words, r"train.csv row \d+.*'four'"),
        (lambda words: f"{words},5", "comma"),
        (lambda words: "nan" if words % 2 else 1.5, "rows have no label|missing"),
        (lambda words: "many", "none of the 60 rows"),
        (lambda words: 4.0, "4 in every row"),
    ],
)
def test_targets_that_cannot_be_used_are_refused(column, words, make, tmp_path):
    data = write_splits(tmp_path / "bad", y=column)
    with pytest.raises(DataError, match=words):
        finetune(make(data, "y"))
    assert not (tmp_path / "run").exists()


def test_rows_without_a_target_are_skipped_and_counted(make, tmp_path):
    data = write_splits(tmp_path / "bad", y=lambda words: "?" if words == 9 else words)
    missing = sum(row["y"] == "?" for row in lengths(24, 2, y=lambda words: "?" if words == 9 else words))
    run = prepared(make(data, "y", data__on_bad_row="skip"))
    assert missing and len(run.examples["test"]) == 24 - missing
    said = [*run.examples["test"].notes, *run.splits.notes, *(finding.text for finding in run.splits.findings)]
    assert any(f"{missing} of 24 rows" in text and "data.on_bad_row" in text for text in said), said


def test_numbers_are_not_regression_unless_asked_for(make_recipe, tmp_path):
    data = write_splits(tmp_path / "stars", stars=lambda words: 1 + words % 3)
    run = prepared(make_recipe(data__name=data, data__label_column="stars"))
    assert run.task.scorer.metric_names()[0] == "accuracy"


def test_a_probe_is_refused_before_training(make, years):
    with pytest.raises(RecipeError, match=r"eval.baseline.*regression"):
        finetune(make(years, eval__baseline="probe"))


@pytest.mark.parametrize("held", ["", long("-1.0"), long(None)])
def test_a_test_without_targets_is_predicted_and_not_scored(held, make, years, tmp_path):
    rows = [{"text": row["text"]} | ({} if held is None else {"year": held}) for row in lengths(8, 3)]
    write_csv(tmp_path / "years" / "test.csv", rows)
    result = finetune(make(years, train__max_steps=1))
    predictions = read_rows(result.output_dir / "predictions.jsonl")
    assert "test" not in result.metrics and len(predictions) == 8
    assert all("reference" not in row and isinstance(row["prediction"], float) for row in predictions)
    assert (result.output_dir / "report.html").is_file()


def test_a_column_for_each_target(make, tmp_path):
    data = write_splits(tmp_path / "two", valence=lambda words: words / 10, arousal=lambda words: f"{500 - words}.5")
    recipe = make(data, ["valence", "arousal"], train__num_train_epochs=4)
    result = finetune(recipe)
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert set(rows[0]["reference"]) == {"valence", "arousal"} and 480 < rows[0]["reference"]["arousal"] < 500
    assert evaluate_run(result.output_dir)["standardized_rmse"] == result.metrics["test"]["standardized_rmse"]


def test_settings_of_labels_are_refused(make, years):
    with pytest.raises(RecipeError, match="label_separator"):
        finetune(make(years, data__label_separator=","))
