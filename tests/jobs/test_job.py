"""A run in three stages, with rows given in memory and with some of its outputs alone."""

from __future__ import annotations

import csv
import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from small_runs import prepared, read_rows, same, stop, weights
from tiers import long

from sft_hf.core.errors import DataError, RecipeError, RunFolderError, Terminated, UserError
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.core.run.record import read_record
from sft_hf.engine.callbacks import Callback
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.job import TrainingJob
from sft_hf.jobs.results import ALL_OUTPUTS


@pytest.fixture
def splits(data_folder):
    """The rows of the tiny data folder, in memory."""
    found = {}
    for role in ("train", "test"):
        with open(data_folder / f"{role}.csv", newline="", encoding="utf-8") as file:
            found[role] = Dataset.from_list(list(csv.DictReader(file)))
    return found


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- stages ------------------------------------------------------------------------------------------------------


def test_the_stages_give_what_finetune_gives(make_recipe, tmp_path):
    whole = finetune(make_recipe(output_dir=str(tmp_path / "whole"), train__max_steps=4))
    with TrainingJob(make_recipe(train__max_steps=4)) as job:
        job.prepare()
        assert not (tmp_path / "run").exists()  # nothing is written until everything has been read
        state = job.train()
        assert state is job.state and state.step == 4
        assert not (tmp_path / "run" / "metrics.json").exists()
        result = job.finish()
    assert result.metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert same(weights(whole.output_dir), weights(tmp_path / "run"))
    assert not list((tmp_path / "run").glob(".lock*"))


def test_a_job_that_fails_gives_the_folder_back(make_recipe, tmp_path):
    with pytest.raises(DataError), TrainingJob(make_recipe(data__label_column="labl")) as job:
        job.prepare()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError), TrainingJob(make_recipe(data__label_column="labl")) as job:
        job.prepare()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_taken_folder_is_refused_before_anything_is_read(make_recipe, data_folder, tmp_path):
    finetune(make_recipe(train__max_steps=1))
    before = contents(tmp_path / "run")
    with pytest.raises(RunFolderError), TrainingJob(make_recipe(data__name=str(tmp_path / "absent"))):
        pass
    with pytest.raises(RunFolderError), TrainingJob(make_recipe(train__max_steps=1), resume=True):
        pass  # it is finished
    assert contents(tmp_path / "run") == before


def test_callbacks_reach_the_loop(make_recipe):
    callback = Callback()
    assert prepared(make_recipe(), callbacks=[callback]).training.callbacks.callbacks == [callback]


# --- rows in memory ----------------------------------------------------------------------------------------------


def test_rows_in_memory_train_the_same_model(make_recipe, splits, tmp_path):
    from_files = finetune(make_recipe(output_dir=str(tmp_path / "files"), train__max_steps=6))
    in_memory = finetune(make_recipe(train__max_steps=6), splits=splits)
    assert same(weights(from_files.output_dir), weights(in_memory.output_dir))
    for name in ("predictions.jsonl",):
        assert (from_files.output_dir / name).read_text() == (in_memory.output_dir / name).read_text()
    assert in_memory.metrics["data"]["name"] == "memory"
    assert in_memory.metrics["data"]["splits"].keys() == {"train", "validation", "test"}  # the second one held out


def test_the_data_that_the_recipe_names_are_not_opened(make_recipe, splits, tmp_path):
    recipe = make_recipe(train__max_steps=1, data__name=str(tmp_path / "absent.csv"), data__sha256="0" * 64)
    finetune(recipe, splits=splits)
    assert recipe.data.name == str(tmp_path / "absent.csv")  # the caller's stays as it was


def test_a_run_on_rows_in_memory_resumes_to_the_same_bits_with_the_same_rows_alone(make_recipe, splits, tmp_path):
    whole = finetune(make_recipe(output_dir=str(tmp_path / "whole"), checkpoint__save_steps=4), splits=splits)
    recipe = make_recipe(checkpoint__save_steps=4)
    stop(recipe, 9, Terminated("here"), splits=splits)
    fewer = {**splits, "train": splits["train"].select(range(len(splits["train"]) - 1))}
    before = contents(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"data\.train"):
        finetune(recipe, splits=fewer, resume=True)
    assert contents(tmp_path / "run") == before
    resumed = finetune(recipe, splits=splits, resume=True)
    assert same(weights(whole.output_dir), weights(resumed.output_dir))


def test_a_recipe_of_rows_in_memory_needs_them_again(make_recipe, splits, tmp_path, monkeypatch):
    finetune(make_recipe(train__max_steps=1), splits=splits)
    (tmp_path / "memory").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of this name is not what is meant
    recipe = load_recipe(str(tmp_path / "run" / "recipe.yaml"), [f"output_dir={tmp_path / 'again'}"])
    assert recipe.data.name == "memory"
    with pytest.raises(RecipeError, match=r"data\.name.*splits="):
        finetune(recipe)
    assert not (tmp_path / "again").exists()
    with pytest.raises(DataError, match="in memory"):
        evaluate_run(tmp_path / "run")
    assert same(weights(finetune(recipe, splits=splits).output_dir), weights(tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: {"valid": rows["test"]}, ["splits", "valid", "validation"]),
        (lambda rows: {"test": rows["test"]}, ["splits", "train"]),
        (lambda rows: {"train": rows["train"].to_list()}, ["splits['train']", "list"]),
        (lambda rows: {"train": rows["train"].rename_column("label", "topic")}, ["train (in memory)", "'label'"]),
        (lambda rows: {"train": rows["train"].select([])}, ["train (in memory)"]),
    ],
)
def test_rows_that_cannot_be_used_are_named(make_recipe, splits, tmp_path, change, words):
    with pytest.raises(DataError) as caught:
        finetune(make_recipe(), splits=change(splits))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_rows_of_a_fold_keep_their_numbers(make_recipe, splits, tmp_path):
    rows = splits["train"].add_column("row_id", list(range(100, 100 + len(splits["train"]))))
    given = {"train": rows.select(range(20, len(rows))), "test": rows.select(range(20))}
    finetune(make_recipe(train__max_steps=1), splits=given)
    assert [row["id"] for row in read_rows(tmp_path / "run" / "predictions.jsonl")] == list(range(100, 120))


@pytest.mark.parametrize(
    "numbers", [lambda n: [str(i) for i in range(n)], lambda n: [7] * n, lambda n: range(-1, n - 1)]
)
def test_a_column_that_does_not_number_the_rows_is_replaced(make_recipe, splits, numbers):
    given = {role: rows.add_column("row_id", list(numbers(len(rows)))) for role, rows in splits.items()}
    job = prepared(make_recipe(data__validation_fraction=0), splits=given)
    assert job.examples["test"].row_ids.tolist() == list(range(len(splits["test"])))


def test_declared_classes_keep_their_order(make_recipe, splits):
    names = ["sport", "money", "food"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    given = {role: rows.select_columns(["text", "label"]).cast(features) for role, rows in splits.items()}
    assert list(prepared(make_recipe(), splits=given).task.label_map.names) == names


def test_pictures_in_memory(make_image_recipe, image_folder):
    from PIL import Image

    given = {}
    for role in ("train", "test"):
        files = sorted((image_folder / role).rglob("*.*g"))
        labels = [file.parent.name for file in files]
        given[role] = Dataset.from_dict({"image": [Image.open(file).convert("RGB") for file in files], "label": labels})
    job = prepared(make_image_recipe(), splits=given)
    batch = job.task.collate([job.examples["test"].features[0]])
    assert batch["pixel_values"].shape[0] == 1 and len(job.examples["test"]) == len(given["test"])


def test_recordings_in_memory_by_their_paths(make_speech_recipe, speech_folder, monkeypatch):
    with open(speech_folder / "train" / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [{"audio": row["file_name"], "transcription": row["transcription"]} for row in csv.DictReader(file)]
    monkeypatch.chdir(speech_folder / "train")
    job = prepared(make_speech_recipe(), splits={"train": Dataset.from_list(rows)})
    assert sum(len(split) for split in job.all_examples().values()) == len(rows)


# --- outputs -----------------------------------------------------------------------------------------------------


WRITTEN = {
    "model": "model/model.safetensors",
    "card": "model/README.md",
    "predictions": "predictions.jsonl",
    "report": "report.html",
}


@pytest.mark.parametrize("left_out", ["model", long("card"), long("predictions"), "report", long("baselines")])
def test_what_is_not_wanted_is_not_written(make_recipe, tmp_path, left_out):
    result = finetune(make_recipe(train__max_steps=1), outputs=ALL_OUTPUTS - {left_out})
    gone = {left_out} | ({"card"} if left_out == "model" else set())
    assert {name for name, file in WRITTEN.items() if not (tmp_path / "run" / file).exists()} == gone & WRITTEN.keys()
    assert ("baseline" in result.metrics) == (left_out != "baselines")
    assert result.metrics["not_written"] == [left_out]


def test_metrics_alone(make_recipe, tmp_path):
    recipe = make_recipe(train__max_steps=1, push_to_hub=True)
    result = finetune(recipe, outputs=())  # and nothing is pushed
    assert result.hub_url is None
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"recipe.yaml", "log.jsonl", "metrics.json", "checkpoints"}
    assert finetune(recipe, outputs=(), resume=True).metrics == result.metrics  # it is finished
    assert read_record(tmp_path / "run").scores == result.metrics["test"]
    with pytest.raises(RunFolderError, match="outputs"):
        evaluate_run(tmp_path / "run")


def test_scores_do_not_depend_on_what_is_written(make_recipe, tmp_path):
    few = finetune(make_recipe(train__max_steps=3), outputs=["predictions"])
    whole = finetune(make_recipe(train__max_steps=3, output_dir=str(tmp_path / "whole")))
    assert few.metrics["test"] == whole.metrics["test"] and few.metrics["validation"] == whole.metrics["validation"]


def test_an_unknown_output_is_refused(make_recipe):
    with pytest.raises(UserError, match="did you mean model"):
        TrainingJob(make_recipe(), outputs=["modle"])
