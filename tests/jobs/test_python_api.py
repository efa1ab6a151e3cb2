"""The Python API: data in memory in, a run out, and everything that a run can be asked for."""

from __future__ import annotations

import io
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import soundfile
from datasets import Dataset, DatasetDict
from small_runs import same, weights
from tiny_data import COLOURS, RATE, make_image, make_rows, make_speech, spoken_texts

import sft_hf as sft
from sft_hf.core.errors import DataError, RunFolderError, UserError
from sft_hf.engine.process import build_accelerator

TINY = {"mixed_precision": "no", "num_threads": 1, "epochs": 1, "baseline": "none"}
TEXTS = ["goal match team", "bank rate dollar", "bread cheese soup"]


def reviews(count: int = 60, seed: int = 1) -> pd.DataFrame:
    return pd.DataFrame(make_rows(count, seed=seed)).rename(columns={"text": "review", "label": "topic"})


@pytest.fixture(scope="module")
def finetune_text(checkpoint, tmp_path_factory):
    """`finetune` of the tiny text model on reviews in memory."""

    def finetune(train, **settings):
        folder = settings.pop("output_dir", tmp_path_factory.mktemp("runs") / "run")
        own = {"task": "text_classification", "model": checkpoint, "text": "review", "label": "topic"}
        sizes = {"batch_size": 8, "learning_rate": 1e-2, "max_length": 32}
        return sft.finetune(train=train, output_dir=folder, **{**TINY, **own, **sizes, **settings})

    return finetune


@pytest.fixture(scope="module")
def text_run(finetune_text):
    """A run on a DataFrame with a test split of its own; its index is not its rows' numbers."""
    return finetune_text(reviews().set_index(pd.Index(range(100, 160))), test=pl.from_pandas(reviews(30, 2)), epochs=6)


# --- data in memory ----------------------------------------------------------------------------------------------


def test_a_run_on_a_data_frame(text_run):
    assert text_run.metrics["test"]["accuracy"] > 0.8
    assert text_run.metrics["train"]["num_examples"] == 54  # 6 were held out for validation
    assert (text_run.recipe.data.name, text_run.recipe.data.text_column) == ("memory", "review")
    rows = text_run.predictions("test")
    assert rows == [json.loads(line) for line in (text_run.path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(30)), "positions in the frame"
    with pytest.raises(UserError, match="rows of test"):
        text_run.predictions("validation")
    assert [row["text"] for row in rows] == reviews(30, 2)["review"].tolist()


@pytest.mark.long
def test_other_kinds_of_tables_give_the_same_run(finetune_text):
    """That they are read alike: tests/data/tables/test_table_kinds.py."""

    frame = reviews(24)
    kinds = {
        "pandas": frame,
        "polars": pl.from_pandas(frame),
        "dicts": frame.to_dict("records"),
        "lists": frame.to_dict("list"),
        "categorical": frame.astype({"topic": "category"}),
        "splits": DatasetDict(train=Dataset.from_pandas(frame)),
    }
    runs = {kind: finetune_text(data, max_steps=2, test=frame.head(6)) for kind, data in kinds.items()}
    first = weights(runs["pandas"].path)
    assert all(same(weights(run.path), first) for run in runs.values())


def test_splits_of_a_data_set_dict(finetune_text):
    splits = {"train": 24, "dev": 6, "test": 9}
    data = DatasetDict({name: Dataset.from_pandas(reviews(size, size)) for name, size in splits.items()})
    metrics = finetune_text(data, max_steps=1).metrics
    assert (metrics["train"]["num_examples"], metrics["validation"]["num_examples"]) == (24, 6)
    assert metrics["test"]["num_examples"] == 9


def test_a_recipe_by_name_on_other_data(checkpoint, tmp_path):
    """The recipe's settings stay, its data and model are replaced."""
    run = sft.finetune("text", model=checkpoint, train=reviews(24), text="review", label="topic", max_steps=1, **TINY)
    assert run.recipe.optim.learning_rate == sft.load_recipe("text").optim.learning_rate
    assert run.metrics["train"]["num_steps"] == 1


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_names_of_files(checkpoint, tmp_path):
    for name, size in {"train": 24, "held": 6}.items():
        reviews(size).to_csv(tmp_path / f"{name}.csv", index=False)
    given = {"task": "text_classification", "model": checkpoint, "text": "review", "label": "topic", "max_steps": 1}
    run = sft.finetune(train="train.csv", test=Path("held.csv"), **given, **TINY)
    assert run.metrics["test"]["num_examples"] == 6
    assert run.path == (tmp_path / "runs" / "text_classification").resolve()
    assert run.evaluate("test")["accuracy"] == run.metrics["test"]["accuracy"]
    again = sft.finetune(train="train.csv", test="held.csv", **given, **TINY)
    assert again.path.name == "text_classification-2", "two runs in a notebook do not meet"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (reviews(9).assign(review=["a"] * 4 + [None] + ["b"] * 4), "train|row 4|'review'"),
        (reviews(9).assign(topic=["a"] * 7 + [np.nan] * 2), "train|row|7, 8|'topic'"),
        (reviews(9).assign(review=[*"abcdefgh", 3.0]), "train|row 8|'review'"),
        (reviews(9).rename(columns={"review": "reviews"}), "'review'|did you mean reviews"),
        (reviews(9).head(0), "no rows"),
        (3, "train|DataFrame"),
    ],
)
def test_bad_rows_are_named_before_anything_is_written(finetune_text, tmp_path, data, words):
    with pytest.raises(UserError) as error:
        finetune_text(data, output_dir=tmp_path / "run")
    assert all(word in str(error.value) for word in words.split("|")), error.value
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_rows_that_may_be_left_out(finetune_text):
    data = reviews(24).assign(review=lambda frame: frame["review"].where(frame.index != 3))
    assert finetune_text(data, max_steps=1, on_bad_row="skip", test=reviews(6)).metrics["train"]["num_examples"] == 21


def test_classic_settings(finetune_text):
    """Plain SGD with momentum, a cosine schedule, early stopping: each under its name."""
    run = finetune_text(
        reviews(24),
        epochs=1,
        optim={"name": "sgd", "args": {"momentum": 0.9}},
        scheduler="cosine",
        patience=3,
        techniques=["label_smoothing", {"name": "mixup", "alpha": 0.3}],
    )
    assert (run.recipe.optim.name, run.recipe.optim.args) == ("sgd", {"momentum": 0.9})
    assert [one.name for one in run.recipe.techniques] == ["label_smoothing", "mixup"]


# --- a run -------------------------------------------------------------------------------------------------------


def test_texts_are_texts_always(text_run, tmp_path):
    for name in ("notes.txt", "-", "goal"):
        (tmp_path / name).write_text("bank rate dollar\nbread\n")
    answers = text_run.predict([*TEXTS, "notes.txt", "-", "goal"])
    assert [row["prediction"] for row in answers[:3]] == ["sport", "money", "food"]
    assert [row["id"] for row in answers] == list(range(6))
    assert [row["review"] for row in answers[3:]] == ["notes.txt", "-", "goal"]
    assert all(0 < row["confidence"] <= 1 and "error" not in row for row in answers)
    assert len(list(sft.predict_files(text_run, ["notes.txt"]))) == 2, "files are for predict_files"


def test_what_cannot_be_answered_keeps_its_place(text_run):
    answers = text_run.predict(["goal", "", None, 3.5, "\ud800", "bank", ["a", "b"]])
    assert len(answers) == 7
    assert [number for number, row in enumerate(answers) if "error" in row] == [1, 2, 3, 4, 6]
    assert all(row["prediction"] is None and f"input {row['id']}" in row["error"] for row in answers if "error" in row)
    assert [row["error"] for row in text_run.predict([""])], "nor does a single one vanish"
    assert text_run.predict([]) == []


@pytest.mark.parametrize(
    "make", [list, tuple, pd.Series, np.array, iter, lambda texts: pd.DataFrame({"review": texts})]
)
def test_kinds_of_lists(text_run, make):
    assert [row["prediction"] for row in text_run.predict(make(TEXTS))] == ["sport", "money", "food"]


def test_a_single_input_and_a_table_without_the_column(text_run):
    assert [row["prediction"] for row in text_run.predict("goal match")] == ["sport"]
    with pytest.raises(DataError, match="did you mean review"):
        text_run.predict(pd.DataFrame({"reviews": TEXTS}))


def test_probabilities(text_run):
    assert text_run.labels == ["sport", "money", "food"]
    test = text_run.probabilities("test")
    assert test.shape == (30, 3) and test.dtype == np.float32 and np.allclose(test.sum(axis=1), 1)
    rows = [json.loads(line) for line in (text_run.path / "predictions.jsonl").read_text().splitlines()]
    assert [text_run.labels[best] for best in test.argmax(axis=1)] == [row["prediction"] for row in rows]
    assert np.allclose(test.max(axis=1), [row["confidence"] for row in rows], atol=1e-6)
    again = text_run.probabilities(reviews(30, 2)["review"].tolist())
    assert np.allclose(again, test, atol=1e-4)
    assert text_run.probabilities("validation").shape == (6, 3)
    assert text_run.outputs("test").row_id.tolist() == list(range(30))
    with pytest.raises(UserError, match="did you mean test"):
        text_run.probabilities("tset")
    with pytest.raises(DataError, match="input 1"):
        text_run.probabilities(["goal", ""])


def test_probabilities_have_the_temperature(finetune_text):
    run = finetune_text(reviews(60), epochs=2, techniques=["temperature_scaling"])
    outputs = run.outputs("test")
    assert outputs.temperature != 1
    rows = [json.loads(line) for line in (run.path / "predictions.jsonl").read_text().splitlines()]
    assert np.allclose(run.probabilities("test").max(axis=1), [row["confidence"] for row in rows], atol=1e-6)


def test_evaluate(text_run):
    assert text_run.evaluate()["accuracy"] == text_run.metrics["test"]["accuracy"], "the rows are still in memory"
    again = sft.evaluate(text_run.path, reviews(30, 2))
    assert again["accuracy"] == text_run.metrics["test"]["accuracy"] and "accuracy_ci95" in again
    opened = sft.Run(text_run.path)
    with pytest.raises(DataError, match=r"memory.*run\.evaluate\("):
        opened.evaluate("validation")
    with pytest.raises(DataError, match=r"'tst'.*did you mean test"):
        opened.evaluate("tst")
    assert not opened._predictors, "refused before the model is loaded"
    with pytest.raises(DataError, match="data row 1"):
        text_run.evaluate([{"review": "goal", "topic": "sport"}, {"review": "goal", "topic": "spart"}])
    with pytest.raises(DataError, match="'topic'"):
        text_run.evaluate([{"review": "goal"}])


def test_a_run_is_opened_again(text_run):
    run = sft.Run(str(text_run.path))
    assert run.metrics == text_run.metrics and run.recipe == text_run.recipe
    assert run.model is run.model and not run.model.training
    assert run.predict(TEXTS) == text_run.predict(TEXTS) == sft.predict(text_run.path, TEXTS)
    for name in ("nowhere", "."):
        with pytest.raises(RunFolderError, match=name.replace(".", r"\.")):
            sft.Run(name)


def test_the_model_is_loaded_once(text_run, monkeypatch):
    from sft_hf.jobs import run as module

    opened = []
    original = module.open_trained
    monkeypatch.setattr(
        module, "open_trained", lambda *given, **options: opened.append(1) or original(*given, **options)
    )
    run = sft.Run(text_run.path)
    run.metrics, run.probabilities("test"), repr(run)
    assert not opened, "numbers need no model"
    run.predict(TEXTS), run.predict(TEXTS), list(sft.predict_files(run, "goal")), run.evaluate(reviews(6)), run.labels
    assert len(opened) == 1


def test_a_run_says_what_it_is(text_run, tmp_path):
    value = text_run.metrics["test"]["accuracy"]
    assert f"test accuracy {value:.4f}" in repr(text_run) and str(text_run.path) in repr(text_run)
    page = text_run._repr_html_()
    assert f"{value:.4f}" in page and page.count("<tr>") == 3
    (tmp_path / "a <b> & 'c'").symlink_to(text_run.path)
    odd = sft.Run(tmp_path / "a <b> & 'c'")._repr_html_()
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;" in odd and "<b> &" not in odd


def test_the_report(text_run, tmp_path):
    path = text_run.report()
    assert path == text_run.path / "report.html"
    before = path.stat().st_mtime_ns
    assert sft.Run(text_run.path).report().stat().st_mtime_ns == before, "it is there already"
    assert "<html" in text_run.report(tmp_path / "again.html").read_text()
    text_run.report(refresh=True)
    assert path.stat().st_mtime_ns != before


def test_push_names_the_repository(text_run, monkeypatch):
    from sft_hf.publishing.hub import push as module

    calls = []
    result = module.PushResult("me/x", "https://hub/me/x", "0" * 40, (), True, True)
    monkeypatch.setattr(module, "push", lambda *given, **options: calls.append((given, options)) or result)
    assert text_run.push("me/x", private=False) == text_run.hub_url == "https://hub/me/x"
    assert calls == [((text_run.path, "me/x"), {"private": False, "revision": None})]


def test_options_of_other_tasks_are_refused(text_run):
    with pytest.raises(UserError, match="speech"):
        text_run.predict(TEXTS, timestamps=True)


def test_pairs_of_texts(finetune_text):
    data = reviews(24).assign(title="the goal")
    run = finetune_text(data, text_pair="title", max_steps=2)
    answers = run.predict([("goal match", "the"), {"review": "bank", "title": "rate"}, "alone", ("a", "b", "c")])
    assert ["error" in row for row in answers] == [False, False, True, True]
    assert len(run.predict(data)) == 24


# --- pictures and recordings -------------------------------------------------------------------------------------


def pictures(per_class: int, kind, seed: int = 0) -> list[dict]:
    rows = []
    for index in range(per_class):
        for number, label in enumerate(COLOURS):
            rows.append({"photo": kind(make_image(label, seed * 1000 + index * 10 + number)), "colour": label})
    return rows


@pytest.fixture(scope="module")
def image_run(image_checkpoint, tmp_path_factory):
    """A run on arrays."""
    return sft.finetune(
        model=image_checkpoint,
        train=pd.DataFrame(pictures(10, np.asarray)),
        test=pictures(4, lambda image: image, seed=1),
        image="photo",
        label="colour",
        learning_rate=1e-2,
        batch_size=8,
        output_dir=tmp_path_factory.mktemp("images") / "run",
        **{**TINY, "epochs": 3},
    )


def test_a_run_on_pictures(image_run):
    assert image_run.recipe.task.name == "image_classification" and image_run.metrics["test"]["accuracy"] > 0.6


def test_what_stands_for_a_picture(image_run, tmp_path):
    picture = make_image("red", 77)
    picture.save(tmp_path / "red.png")
    file = (tmp_path / "red.png").read_bytes()
    kinds = ["red.png", Path("red.png"), picture, np.asarray(picture), file, {"bytes": file}, {"photo": picture}]
    answers = image_run.predict(kinds)
    assert len({(row["prediction"], round(row["confidence"], 5)) for row in answers}) == 1, answers
    assert answers[0]["path"] == "red.png"
    (single,) = image_run.predict(picture)
    assert single["prediction"] == answers[0]["prediction"]
    assert len(image_run.predict(np.stack([np.asarray(picture)] * 2))) == 2
    assert image_run.probabilities([picture]).shape == (1, 3)


def test_pictures_that_cannot_be_answered(image_run, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    bad = ["nowhere.png", "notes.txt", ".", np.zeros((2, 2, 7)), None, b"no picture", 3]
    answers = image_run.predict([*bad, make_image("red", 1)])
    assert ["error" in row for row in answers] == [True] * len(bad) + [False]
    assert len(answers) == len(bad) + 1


def test_files_and_folders_go_through_predict_files(image_run, tmp_path):
    (tmp_path / "photos").mkdir()
    for label in COLOURS:
        make_image(label, 5).save(tmp_path / "photos" / f"{label}.png")
    rows = list(sft.predict_files(image_run, "photos"))
    assert [Path(row["path"]).stem for row in rows] == sorted(COLOURS)
    assert rows == list(sft.predict_files(image_run.path, [tmp_path / "photos"])) or len(rows) == 3


@pytest.fixture(scope="module")
def speech_run(whisper_checkpoint, tmp_path_factory):
    """A run on samples."""
    rows = [
        {"clip": {"array": make_speech(text, index), "sampling_rate": RATE}, "said": text}
        for index, text in enumerate(spoken_texts(8, seed=1))
    ]
    return sft.finetune(
        model=whisper_checkpoint,
        train=rows,
        validation={"clip": [(row["clip"]["array"], RATE) for row in rows], "said": [row["said"] for row in rows]},
        test=pl.DataFrame(
            {
                "clip": pl.Series([(RATE, row["clip"]["array"]) for row in rows], dtype=pl.Object),
                "said": [row["said"] for row in rows],
            }
        ),
        audio="clip",
        transcript="said",
        batch_size=4,
        learning_rate=5e-3,
        output_dir=tmp_path_factory.mktemp("speech") / "run",
        **TINY,
    )


def test_a_run_on_samples(speech_run, tmp_path):
    assert speech_run.recipe.task.name == "speech_recognition" and "wer" in speech_run.metrics["test"]
    assert speech_run.metrics["test"] | {"loss": 0} == speech_run.metrics["validation"] | {"loss": 0}, (
        "the same samples"
    )
    samples = make_speech("one two", 9)
    soundfile.write(tmp_path / "clip.wav", samples, RATE, subtype="FLOAT")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    kinds = ["clip.wav", {"array": samples, "sampling_rate": RATE}, (samples, RATE), buffer.getvalue()]
    answers = speech_run.predict(kinds)
    assert len({row["prediction"] for row in answers}) == 1 and all("error" not in row for row in answers)
    assert [row["prediction"] for row in speech_run.predict(kinds[1])] == [answers[0]["prediction"]]
    assert "segments" in speech_run.predict(["clip.wav"], timestamps=True)[0]
    assert "error" in speech_run.predict([samples])[0]
    with pytest.raises(UserError, match="no probabilities"):
        speech_run.probabilities("test")
    with pytest.raises(UserError, match="no labels"):
        _ = speech_run.labels


# --- several runs in one process, and interruptions --------------------------------------------------------------


class Interrupt(sft.Callback):
    """Sends this process what Ctrl-C, or the stop button of a notebook, sends."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int) -> None:
        if step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_interrupted_and_resumed(finetune_text, tmp_path):
    whole = finetune_text(reviews(24), epochs=2, output_dir=tmp_path / "whole")
    given = {"epochs": 2, "output_dir": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        finetune_text(reviews(24), callbacks=[Interrupt(3)], **given)
    assert (tmp_path / "run" / "checkpoints" / "step-000003").is_dir()
    with pytest.raises(RunFolderError, match="not finished"):
        sft.Run(tmp_path / "run")
    with pytest.raises(UserError, match="train"):
        finetune_text(reviews(24, seed=5), resume=True, **given)  # other rows
    resumed = finetune_text(reviews(24), resume=True, **given)
    assert same(weights(resumed.path), weights(whole.path))
    assert finetune_text(reviews(24), resume=True, **given).metrics == resumed.metrics, "nothing is left to resume"


def test_arrays_are_the_same_rows_when_resumed(image_checkpoint, speech_run, tmp_path):
    given = {
        "model": image_checkpoint,
        "image": "photo",
        "label": "colour",
        "output_dir": tmp_path / "run",
        "batch_size": 4,
        **TINY,
    }
    with pytest.raises(KeyboardInterrupt):
        sft.finetune(train=pictures(8, np.asarray), callbacks=[Interrupt(2)], **given)
    run = sft.finetune(train=pictures(8, lambda image: image), resume=True, **given)
    assert "test" in run.metrics, "pixels count, whatever they were in"


def test_predictions_inside_a_callback_change_nothing(finetune_text, text_run, tmp_path):
    class Ask(sft.Callback):
        def on_step_end(self, step):
            text_run.predict(TEXTS, mixed_precision="bf16")

    alone = finetune_text(reviews(24), max_steps=3)
    asked = finetune_text(reviews(24), max_steps=3, callbacks=[Ask()])
    assert same(weights(alone.path), weights(asked.path))


def test_predicting_leaves_the_state_of_accelerate(text_run):
    accelerator = build_accelerator("bf16", 1)
    text_run.predict(TEXTS, mixed_precision="no")
    assert accelerator.mixed_precision == "bf16"


def test_the_log_is_seen_in_a_notebook(finetune_text, monkeypatch, capsys):
    """A notebook has handlers of its own at the root; progress is text, without widgets or warnings."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    log = logging.getLogger("sft_hf")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.NOTSET)
    log.manager._clear_cache()
    finetune_text(reviews(24), max_steps=2)
    told = capsys.readouterr().err
    assert "rows: train" in told and "training:" in told and "Warning" not in told


def test_importing_costs_nothing():
    code = "import sys, sft_hf; assert not {'torch', 'transformers', 'datasets', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pandas_is_not_needed(tmp_path):
    code = (
        "import sys; sys.modules['pandas'] = sys.modules['polars'] = None\n"
        "from sft_hf.data.in_memory.frames import frame_of\n"
        "assert frame_of([{'a': 1}], 'train').column_names == ['a']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
