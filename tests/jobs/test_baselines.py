"""What scores are compared with, against the same done by hand."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_runs import prepared
from tiny_data import make_rows, write_csv

from sft_hf.core.errors import RecipeError, Terminated, TrainingError
from sft_hf.jobs.baselines.base import Budget, Run, predict_within
from sft_hf.jobs.baselines.compare import baseline_metrics
from sft_hf.jobs.baselines.kinds import frozen_probe, untrained, words
from sft_hf.jobs.baselines.linear import UNSEEN, fitted_within, logistic_on_features, logistic_on_words
from sft_hf.jobs.finetune import finetune


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untrained_run(recipe, split="test", answers=()):
    """What baselines know of a run that has not trained."""
    run = prepared(recipe)
    parts = (run.recipe, run.task, run.source, run.accelerator, split, run.all_examples(), run.splits.by_role)
    return Run(*parts, list(answers))


def answered(run, answer):
    """The same run, whose model gives one answer to all rows."""
    rows = [{"reference": run.task.scorer.reference(value), "prediction": answer} for value in run.scored.references]
    return replace(run, answers=rows)


class Clock:
    """A clock that goes on by so many seconds whenever somebody looks at it."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        self.now += self.seconds
        return self.now


def test_the_most_frequent_label_of_train(make_recipe, data_folder):
    result = finetune(make_recipe(train__max_steps=1))
    baseline = result.metrics["baseline"]
    references = [row["reference"] for row in lines_of(result.output_dir / "predictions.jsonl")]
    most = Counter(result.metrics["data"]["splits"]["train"]["labels"]).most_common(1)[0][0]
    assert baseline["name"] == "majority class" and repr(most) in baseline["description"]
    assert baseline["metrics"]["accuracy"] == pytest.approx(references.count(most) / len(references))
    low, high = baseline["metrics"]["accuracy_ci95"]
    assert low < baseline["metrics"]["accuracy"] < high


def test_multi_label(make_recipe, tmp_path):
    rows = [
        {"text": f"goal bank {index}", "label": ["sport", "money"] if index % 2 else ["money"]} for index in range(40)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = finetune(make_recipe(data={"name": str(tmp_path / "train.jsonl")}, train__max_steps=1))
    references = [row["reference"] for row in lines_of(result.output_dir / "predictions.jsonl")]
    right = sum("money" in labels for labels in references)
    missed = sum(len(set(labels) - {"money"}) for labels in references)
    wrong = len(references) - right
    assert result.metrics["baseline"]["metrics"]["micro_f1"] == pytest.approx(2 * right / (2 * right + missed + wrong))


def test_the_untrained_model_of_speech(make_speech_recipe):
    """A run whose learning rate is next to nothing ends where it began."""
    recipe = make_speech_recipe(train__max_steps=1, optim__learning_rate=1e-30, task__window=4)
    result = finetune(recipe)  # the window of the tiny model has 4 seconds
    (baseline,) = result.metrics["baselines"]
    assert baseline["name"] == "zero-shot" and "window" not in baseline["description"]
    assert baseline["metrics"]["wer"] == result.metrics["test"]["wer"]
    assert baseline["metrics"]["wer_ci95"] == result.metrics["test"]["wer_ci95"]
    assert baseline["model"] == {"wer": result.metrics["test"]["wer"]} and baseline["difference"]["p_value"] == 1


def test_the_untrained_model_hears_its_own_window(make_speech_recipe):
    """Training's window is shorter: there, a model that was not trained for it writes something else."""
    run = untrained_run(make_speech_recipe())
    assert run.task.family.windows[-1] < run.task.family.max_seconds == 4
    found = untrained(run, Budget(math.inf, run.accelerator))
    assert "window of 4 seconds" in found.description
    whole = untrained_run(make_speech_recipe(task__window=4))
    # How long an untrained model's transcripts get, those of training do not tell.
    whole.task.family.max_new_tokens = whole.task.family._most_tokens
    assert found.predictions == untrained(whole, Budget(math.inf, whole.accelerator)).predictions
    features = run.scored.features[0]["features"]
    (row,) = run.task.as_pretrained(run.scored)[0].take(np.array([0])).features
    assert run.task.collate([row])["input_features"].shape[-1] == 400 > features.shape[-1]


def test_a_new_vocabulary_has_nothing_to_compare_with(make_speech_recipe, wav2vec2_checkpoint):
    result = finetune(make_speech_recipe(model__name=str(wav2vec2_checkpoint), train__max_steps=1))
    assert "baseline" not in result.metrics


def test_none_is_none(make_recipe):
    assert "baseline" not in finetune(make_recipe(train__max_steps=1, eval__baseline="none")).metrics


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_probe_is_logistic_regression_on_what_the_head_is_given(kind, make_recipe, make_image_recipe, monkeypatch):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    recipe = (make_recipe if kind == "text" else make_image_recipe)(eval__baseline="probe", train__max_steps=1)
    folder = finetune(recipe).output_dir
    run = prepared(recipe)
    model = run.training.model.eval()
    model.classifier = torch.nn.Identity()  # what was the head's input is the output now

    def features(examples):
        rows = []
        with torch.no_grad():
            for index in range(len(examples)):
                batch = run.task.collate([examples.features[index]])
                batch.pop("labels")
                rows.append(model(**batch).logits[0].numpy())
        return np.stack(rows)

    train, test = run.data.examples, run.examples["test"]
    scaler = StandardScaler().fit(features(train))
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(features(train)), train.references)
    accuracy = probe.score(scaler.transform(features(test)), test.references)
    baseline = json.loads((folder / "metrics.json").read_text())["baseline"]
    assert baseline["name"] == "frozen probe"
    assert baseline["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1.5 / len(test))


def test_a_probe_needs_labels(make_speech_recipe):
    with pytest.raises(RecipeError, match=r"eval.baseline: probe requires labels"):
        finetune(make_speech_recipe(eval__baseline="probe", train__max_steps=1))


# --- words -------------------------------------------------------------------------------------------------------


def by_scikit_learn(train, test, labels):
    """Logistic regression on TF-IDF as anybody would write it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    model = OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear", random_state=0))
    return make_pipeline(vectorizer, model).fit(train, labels).predict(test)


def csv_files(folder, train, test):
    write_csv(folder / "train.csv", train)
    write_csv(folder / "test.csv", test)
    return {"name": str(folder)}


@pytest.mark.parametrize("seed", [1, 2])
def test_words_are_what_scikit_learn_makes_of_them(make_recipe, tmp_path, seed):
    train, test = make_rows(60, seed), make_rows(40, seed + 10)
    for row in train[::4]:
        row["label"] = "money"  # so that there are errors
    result = finetune(make_recipe(data=csv_files(tmp_path, train, test), train__max_steps=1))
    majority, baseline = result.metrics["baselines"]
    assert result.metrics["baseline"] == majority and baseline["name"] == "tf-idf"
    held_out = {row["text"] for row in train}  # validation is held out of train: the same rows as the run's
    run = prepared(make_recipe(data=csv_files(tmp_path, train, test)))
    own = [train[index] for index in run.data.examples.row_ids]
    assert len(own) < len(train) and held_out
    answers = by_scikit_learn(
        [row["text"] for row in own], [row["text"] for row in test], [row["label"] for row in own]
    )
    right = np.mean([answer == row["label"] for answer, row in zip(answers, test, strict=True)])
    assert 0.3 < right < 1
    assert baseline["metrics"]["accuracy"] == pytest.approx(right)
    predictions = lines_of(result.output_dir / "predictions.jsonl")
    ours = np.mean([row["prediction"] == row["reference"] for row in predictions])
    assert baseline["difference"]["value"] == pytest.approx(ours - right)
    assert baseline["model"]["accuracy"] == pytest.approx(ours) and baseline["num_examples"] == 40


def labelled(count, seed):
    """Rows of one or two topics, whose words tell them."""
    one, other = make_rows(count, seed), make_rows(count, seed + 50, topics=("money", "food", "sport"))
    return [
        {"text": f"{a['text']} {b['text']}", "label": [a["label"], b["label"]]}
        if index % 2
        else a | {"label": [a["label"]]}
        for index, (a, b) in enumerate(zip(one, other, strict=True))
    ]


@pytest.mark.parametrize("validation", [True, False])
def test_words_of_several_labels_have_a_threshold_of_their_own(make_recipe, tmp_path, validation):
    splits = {
        "train": labelled(90, 3),
        "test": labelled(40, 4),
        **({"validation": labelled(30, 5)} if validation else {}),
    }
    for name, rows in splits.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = untrained_run(make_recipe(data={"name": str(tmp_path), "validation_fraction": 0.0}))
    run.task.scorer.threshold = 0.999  # the model's, which no baseline may use or change
    found = words(run, Budget(math.inf, run.accelerator))
    assert found.metrics["threshold"] != 0.999 == run.task.scorer.threshold
    assert found.metrics["micro_f1"] > 0.75
    assert all(isinstance(labels, list) for labels in found.predictions)
    tuned_on = []
    patched = type(run.task.scorer).tune

    def tune(self, outputs, examples):
        tuned_on.append(examples.references)
        patched(self, outputs, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.task.scorer), "tune", tune)
        words(run, Budget(math.inf, run.accelerator))
    rows = run.examples["validation" if validation else "train"].references
    assert tuned_on == [list(rows)]


def test_pairs_have_words_of_their_own(make_recipe, tmp_path):
    """Which of two texts a word is in tells the label: one bag of words could not."""
    rows = [{"a": "goal", "b": "bank", "label": "x"}, {"a": "bank", "b": "goal", "label": "y"}] * 20
    for row in rows:
        row |= {"a": f"the {row['a']} of", "b": f"a {row['b']} and"}
    data = csv_files(tmp_path, rows, rows[:10]) | {"text_column": "a", "text_pair_column": "b"}
    run = untrained_run(make_recipe(data=data))
    assert words(run, Budget(math.inf, run.accelerator)).metrics["accuracy"] == 1


@pytest.mark.parametrize(
    ("names", "units"), [(["anna", "maria", "otto", "hugo"], "letters"), (["銀行市場", "球隊進球"], "letters")]
)
def test_single_words_are_told_by_their_letters(make_recipe, tmp_path, names, units):
    rows = [
        {"text": f"{name}{index}", "label": "xy"[place % 2]} for index in range(10) for place, name in enumerate(names)
    ]
    run = untrained_run(make_recipe(data=csv_files(tmp_path, rows, rows[:8])))
    found = words(run, Budget(math.inf, run.accelerator))
    assert units in found.description and found.metrics["accuracy"] == 1


def test_texts_without_a_word_and_without_a_choice_have_no_such_baseline(make_recipe, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    rows = [{"text": "?! ... --", "label": "xy"[index % 2]} for index in range(20)]
    run = untrained_run(make_recipe(data=csv_files(tmp_path, rows, rows)))
    assert words(run, Budget(math.inf, run.accelerator)) is None
    assert "baseline skipped: TF-IDF" in caplog.text


def test_a_stream_has_no_baseline_of_its_training_rows(make_recipe):
    labels = ["sport", "money", "food"]
    stream = {"data__streaming": True, "data__label_names": labels, "data__validation_fraction": 0}
    recipe = make_recipe(**stream, train__max_steps=1)
    assert "baselines" not in finetune(recipe).metrics


# --- frozen features ---------------------------------------------------------------------------------------------


def test_images_have_a_probe_beside_the_most_frequent_label(make_image_recipe):
    result = finetune(make_image_recipe(train__max_steps=1))
    assert [found["name"] for found in result.metrics["baselines"]] == ["majority class", "frozen probe"]


def test_a_probe_of_several_labels(make_recipe, tmp_path):
    rows = labelled(60, 3)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = untrained_run(make_recipe(data={"name": str(tmp_path)}))
    found = frozen_probe(run, Budget(math.inf, run.accelerator))
    assert 0 < found.metrics["threshold"] < 1 and found.metrics["micro_f1"] > 0.4


def test_a_probe_that_nobody_asked_for_costs_no_run(make_image_recipe, cnn_checkpoint, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    for error in (RecipeError("no linear head"), TrainingError("out of memory"), MemoryError("far too little")):

        def failing(model, labels, error=error):
            raise error

        monkeypatch.setattr("sft_hf.jobs.baselines.kinds.last_linear", failing)
        run = untrained_run(make_image_recipe())
        assert [found["name"] for found in baseline_metrics(answered(run, "red"), 1e6)] == ["majority class"]
        assert "baseline skipped" in caplog.text
    monkeypatch.setattr("sft_hf.jobs.baselines.kinds.last_linear", lambda model, labels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        baseline_metrics(answered(run, "red"), 1e6)


@pytest.mark.parametrize("fit", [logistic_on_words, logistic_on_features])
def test_labels_that_none_or_all_rows_have(fit):
    features = np.random.default_rng(0).normal(size=(30, 4))
    targets = np.zeros((30, 4), dtype=int)
    targets[:, 0], targets[:, 1] = 1, features[:, 0] > 0
    targets[:, 2] = features[:, 1] > 0
    logits = fit(features, targets)(features)
    assert (logits[:, 0] == -UNSEEN).all() and (logits[:, 3] == UNSEEN).all()
    assert ((logits[:, 1] > 0) == targets[:, 1]).mean() > 0.9


# --- time --------------------------------------------------------------------------------------------------------


def test_a_model_answers_as_many_rows_as_time_allows(make_speech_recipe):
    run = untrained_run(make_speech_recipe())
    model, total = run.fresh_model(), len(run.scored)
    known = predict_within(run, run.task, model, run.scored, Budget(1e6, run.accelerator), "x", first=2)
    assert known[0].tolist() == list(range(total)) and total > 6
    # Each look at the clock takes a second: 2 rows take one, and 3 seconds are left for 3 times as many, less a look.
    rows, outputs = predict_within(run, run.task, model, run.scored, Budget(5, run.accelerator, Clock(1)), "x", first=2)
    assert 2 < len(rows) < total and sorted(rows.tolist()) == rows.tolist()
    for row, tokens in zip(rows.tolist(), outputs["tokens"].tolist(), strict=True):
        whole = known[1]["tokens"][row].tolist()
        assert [token for token in tokens if token >= 0] == [token for token in whole if token >= 0]
    least, _ = predict_within(run, run.task, model, run.scored, Budget(0, run.accelerator, Clock(1)), "x", first=2)
    assert least.tolist() == sorted(run.order(total)[:2].tolist())


def test_a_sample_is_said_and_the_model_is_scored_on_the_same_rows(make_speech_recipe, monkeypatch):
    monkeypatch.setattr("sft_hf.jobs.baselines.kinds.predict_within", partial(predict_within, first=3))
    run = untrained_run(make_speech_recipe())
    texts = [reference.text for reference in run.scored.references]
    answers = [{"reference": text, "prediction": text if index % 2 else "nothing"} for index, text in enumerate(texts)]
    (entry,) = baseline_metrics(replace(run, answers=answers), 0.0, Clock(1))
    assert entry["num_examples"] == 3 and "3 of 8 test rows" in entry["description"]
    rows = sorted(run.order(8)[:3].tolist())
    words_ = [len(texts[row].split()) for row in rows]
    wrong = sum(count for row, count in zip(rows, words_, strict=True) if not row % 2)
    assert entry["model"]["wer"] == pytest.approx(wrong / sum(words_))
    assert entry["difference"]["num_examples"] == 3


def test_a_tenth_of_the_runs_time_is_what_baselines_have(make_speech_recipe, monkeypatch):
    given = []
    monkeypatch.setattr(
        "sft_hf.jobs.baselines.compare._usual", lambda run: [lambda run, budget: given.append(budget.left())]
    )
    run = untrained_run(make_speech_recipe())
    assert baseline_metrics(run, 200.0, lambda: 0.0) == []
    baseline_metrics(run, 1e9, lambda: 0.0)
    assert given == [20.0, 600.0]


@pytest.mark.parametrize(("seconds", "fitted"), [(1000, [10, 100]), (5, [10, 40]), (1.5, [10]), (0, [10])])
def test_a_linear_model_is_fitted_to_what_time_allows(seconds, fitted):
    """The first ten rows take a second, by this clock."""
    calls = []
    order = np.random.default_rng(0).permutation(100)

    class Accelerator:
        num_processes = 1

    budget = Budget(seconds, Accelerator(), Clock(0.5))
    budget.end += 1.0  # the looks before and after

    def fit(rows):
        calls.append(rows.tolist())
        budget.clock.now += 0.5
        return rows

    fitted_within(fit, order, 10, budget)
    assert [len(rows) for rows in calls] == fitted
    assert all(rows == sorted(order[: len(rows)].tolist()) for rows in calls)


def test_a_sample_of_training_rows_is_said(make_recipe, monkeypatch):
    monkeypatch.setattr("sft_hf.jobs.baselines.kinds.LEAST_FITTED", 30)
    run = answered(untrained_run(make_recipe()), "sport")
    _, entry = baseline_metrics(run, 0.0, Clock(1))
    assert f"30 of {len(run.train)} training rows" in entry["description"] and entry["num_examples"] == len(run.scored)


def test_a_model_that_is_worse_is_warned_of(make_recipe, caplog):
    run = answered(untrained_run(make_recipe()), "never")
    majority, baseline = baseline_metrics(run, 1e6)
    warnings = [
        record.getMessage() for record in caplog.records if "the model is clearly worse than" in record.getMessage()
    ]
    assert len(warnings) == 2 and "TF-IDF" in warnings[1] and "McNemar" in warnings[1]
    assert f"{100 * baseline['metrics']['accuracy']:.1f} points worse" in warnings[1]
    assert (
        baseline["difference"]["verdict"] == "clearly worse"
        and baseline["difference"]["p_value"] < 0.05
        and majority["difference"]["value"] < 0
    )
    caplog.clear()
    truth = [{"reference": run.task.scorer.reference(value)} for value in run.scored.references]
    baseline_metrics(replace(run, answers=[row | {"prediction": row["reference"]} for row in truth]), 1e6)
    assert "worse" not in caplog.text


def test_a_signal_between_two_labels_is_heard(make_recipe, monkeypatch):
    run = answered(untrained_run(make_recipe()), "sport")

    def poll():
        raise Terminated("stopped by SIGTERM")

    monkeypatch.setattr("sft_hf.core.signals.poll", poll)
    with pytest.raises(Terminated):
        baseline_metrics(run, 1e6)
