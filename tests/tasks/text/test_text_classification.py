"""The text task: single label, multi-label, pairs, streams, truncation, label order; one process and two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import briefly, killed_and_resumed
from two_processes import run_on_two_processes

from sft_hf.core.errors import DataError
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.run import predict_files

ROOT = Path(__file__).parents[3]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(generator, topic):
    from_topic = {"sport": "goal match team coach", "money": "bank rate dollar share"}[topic].split()
    return list(generator.choice(from_topic, 3))


def multi_label_rows(count, seed):
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        labels = [topic for topic in ("sport", "money") if generator.random() < 0.6]
        text = [word for topic in labels for word in words(generator, topic)] + ["the", "of"]
        rows.append({"text": " ".join(generator.permutation(text)), "label": labels})
    return rows


@pytest.fixture
def multi_label_run(make_recipe, tmp_path):
    jsonl(tmp_path / "data" / "train.jsonl", multi_label_rows(120, 1))
    jsonl(tmp_path / "data" / "validation.jsonl", multi_label_rows(40, 2))
    jsonl(tmp_path / "data" / "test.jsonl", multi_label_rows(40, 3))
    return briefly(make_recipe(data__name=str(tmp_path / "data"), train__num_train_epochs=4))


def test_a_column_of_lists_makes_it_multi_label(multi_label_run, tmp_path):
    from transformers import pipeline

    metrics = multi_label_run.metrics
    assert metrics["primary_metric"] == "micro_f1"
    assert metrics["test"]["micro_f1"] > 0.9
    assert {"macro_f1", "map", "micro_f1_ci95", "threshold"} <= metrics["test"].keys()
    # The threshold is validation's choice, written into the model, and used by everything that reads it.
    assert metrics["test"]["threshold"] == metrics["validation"]["threshold"]
    config = json.loads((multi_label_run.output_dir / "model" / "config.json").read_text())
    assert config["decision_threshold"] == metrics["test"]["threshold"]
    assert evaluate_run(multi_label_run.output_dir)["micro_f1"] == metrics["test"]["micro_f1"]

    rows = [json.loads(line) for line in (multi_label_run.output_dir / "predictions.jsonl").read_text().splitlines()]
    assert all(isinstance(row["prediction"], list) and isinstance(row["reference"], list) for row in rows)
    classify = pipeline(
        "text-classification", model=str(multi_label_run.output_dir / "model"), top_k=None, device="cpu"
    )
    (ours,) = predict_files(multi_label_run.output_dir, ["goal match team bank rate dollar"], mixed_precision="no")
    theirs = {entry["label"]: entry["score"] for entry in classify(["goal match team bank rate dollar"])[0]}
    for label, score in ours["scores"].items():
        assert score == pytest.approx(theirs[label], abs=1e-5)
    assert sorted(ours["prediction"]) == sorted(k for k, v in theirs.items() if v >= config["decision_threshold"])


def pair_rows(count, seed):
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        first, second = generator.choice(["sport", "money"], 2)
        pair = {"premise": " ".join(words(generator, first)), "hypothesis": " ".join(words(generator, second))}
        rows.append({**pair, "label": "same" if first == second else "different"})
    return rows


def test_pairs_are_given_to_the_tokenizer_as_pairs(make_recipe, tmp_path):
    jsonl(tmp_path / "data" / "train.jsonl", pair_rows(60, 1))
    jsonl(tmp_path / "data" / "test.jsonl", pair_rows(20, 2))
    columns = {"data__text_column": "premise", "data__text_pair_column": "hypothesis"}
    result = briefly(make_recipe(data__name=str(tmp_path / "data"), train__max_steps=3, **columns))
    rows = jsonl(tmp_path / "new.jsonl", pair_rows(3, 3))
    predicted = list(predict_files(result.output_dir, [str(rows)], mixed_precision="no"))
    assert [set(row) for row in predicted] == [
        {"id", "path", "row", "premise", "hypothesis", "prediction", "confidence"}
    ] * 3

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = result.output_dir / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    for row in predicted:
        with torch.no_grad():
            logits = model(**tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")).logits[0]
        assert model.config.id2label[int(logits.argmax())] == row["prediction"]
        assert float(logits.softmax(0).max()) == pytest.approx(row["confidence"], abs=1e-5)

    (tmp_path / "new.txt").write_text("one text\n")
    for single in ("one text", str(tmp_path / "new.txt")):
        with pytest.raises(DataError, match="takes pairs of texts"):
            list(predict_files(result.output_dir, [single]))


def test_truncation_is_counted(make_recipe, caplog):
    import logging

    logging.getLogger("sft_hf").propagate = True
    with caplog.at_level("INFO", logger="sft_hf"):
        briefly(make_recipe(task__max_length=8, train__max_steps=1))
    (note,) = [record.message for record in caplog.records if record.message.startswith("test.csv:")]
    assert "of 30 rows" in note and "longer than 8 tokens" in note and "% of all tokens" in note


STREAM = {
    "data__streaming": True,
    "data__stream_buffer_size": 20,
    "data__label_names": ["sport", "money", "food"],
    "data__validation_fraction": 0,
}


def test_a_stream_trains_for_so_many_steps(make_recipe):
    result = briefly(make_recipe(**STREAM, train__max_steps=30))
    assert result.metrics["train"]["num_steps"] == 30
    assert result.metrics["test"]["accuracy"] > 0.8
    with pytest.raises(DataError, match="streamed rows"):
        evaluate_run(result.output_dir, "train")


def test_a_stream_resumes_to_the_same_bits(make_recipe, tmp_path):
    stream = {**STREAM, "train__max_steps": 10, "checkpoint__save_steps": 4}
    whole = briefly(make_recipe(output_dir=str(tmp_path / "whole"), **stream))
    resumed = killed_and_resumed(make_recipe(output_dir=str(tmp_path / "died"), **stream), 6)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_kind_of_problem_says_how_labels_are_read(make_recipe, tmp_path):
    rows = [{"text": f"goal {index}", "label": ('["a", "b"]', '["b"]')[index % 2]} for index in range(24)]
    data = str(jsonl(tmp_path / "train.jsonl", rows))
    changes = {"data__name": data, "task__problem_type": "single_label_classification", "train__max_steps": 1}
    result = briefly(make_recipe(**changes))
    assert [row["label"] for row in result.metrics["test"]["per_class"]] == ['["a", "b"]', '["b"]']


def test_labels_that_are_numbers_keep_their_order(make_recipe, tmp_path):
    rows = [{"text": f"goal {word}", "label": number} for word in "the of to in".split() for number in ("10", "2", "0")]
    jsonl(tmp_path / "train.jsonl", rows * 3)
    result = briefly(make_recipe(data__name=str(tmp_path / "train.jsonl"), train__max_steps=1))
    config = json.loads((result.output_dir / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "2", "2": "10"}
    assert result.metrics["test"]["num_examples"] == 4  # one file: test and validation are held out of it
    assert result.metrics["validation"]["num_examples"] == 4


def test_a_checkpoint_that_knows_the_labels_keeps_their_order_and_its_head(make_recipe, tmp_path):
    first = briefly(make_recipe(output_dir=str(tmp_path / "first"), data__label_names=["food", "money", "sport"]))
    again = make_recipe(
        output_dir=str(tmp_path / "second"),
        model__name=str(first.output_dir / "model"),
        train__max_steps=1,
        optim__learning_rate=1e-30,
    )
    second = briefly(again)
    config = json.loads((second.output_dir / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["food", "money", "sport"]
    assert second.metrics["test"]["accuracy"] == first.metrics["test"]["accuracy"]


def test_a_half_precision_checkpoint_is_trained_in_single_precision(make_recipe, checkpoint, tmp_path):
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(checkpoint, folder)
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    result = briefly(make_recipe(model__name=str(folder), train__max_steps=2))
    saved = load_file(result.output_dir / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_two_processes_train_and_score_as_one_does(make_recipe, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # 30 test rows in batches of 4: the ranks have different numbers of batches.
    common = {"model__config_overrides": still, "eval__per_device_eval_batch_size": 4, "optim__learning_rate": 1e-3}
    one = briefly(make_recipe(output_dir=str(tmp_path / "one"), **common))
    recipe = make_recipe(output_dir=str(tmp_path / "two"), train__per_device_train_batch_size=4, **common)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    done = run_on_two_processes(ROOT / "scripts" / "finetune.py", "--recipe", tmp_path / "recipe.yaml")
    assert "2 processes on cpu" in done.stderr
    assert done.stdout.count("test accuracy") == 1  # one process speaks
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["environment"]["num_processes"] == 2
    assert two["train"]["num_steps"] == one.metrics["train"]["num_steps"]
    assert two["test"]["loss"] == pytest.approx(one.metrics["test"]["loss"], rel=1e-3)
    assert two["test"]["confusion_matrix"] == one.metrics["test"]["confusion_matrix"]
    assert len((tmp_path / "two" / "predictions.jsonl").read_text().splitlines()) == 30


def test_a_pipeline_cuts_long_texts_where_training_did(make_recipe, tmp_path):
    from transformers import pipeline

    result = briefly(make_recipe(task__max_length=8, train__max_steps=4))
    long = "goal match team coach league " + "bank rate dollar market share " * 20
    (ours,) = predict_files(result.output_dir, [long], mixed_precision="no")
    classify = pipeline("text-classification", model=str(result.output_dir / "model"), device="cpu")
    theirs = classify(long, truncation=True)[0]
    assert (theirs["label"], theirs["score"]) == (ours["prediction"], pytest.approx(ours["confidence"], abs=1e-5))


def test_a_decoder_without_a_padding_token_classifies_too(make_recipe, checkpoint, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.eos_token = "[SEP]"
    tokenizer.pad_token = None
    folder = tmp_path / "decoder"
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2Model(config).save_pretrained(folder)
    result = briefly(make_recipe(model__name=str(folder), train__max_steps=2))
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(result.output_dir / "model"), device="cpu")
    (ours,) = predict_files(result.output_dir, ["goal match team"], mixed_precision="no")
    theirs = classify("goal match team")[0]
    assert theirs["label"] == ours["prediction"]
    assert theirs["score"] == pytest.approx(ours["confidence"], abs=1e-5)
