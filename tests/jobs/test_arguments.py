"""From the arguments of `finetune` to a recipe: what each setting sets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sft_hf.core.errors import RecipeError, UserError
from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.core.recipe.short_names import OTHER_NAMES, SHORT_NAMES
from sft_hf.jobs.api import finetune
from sft_hf.jobs.arguments import free_folder, recipe_of
from sft_hf.jobs.settings_table import known_settings

FRAME = pd.DataFrame({"review": ["good", "bad"], "stars": [5, 1]})
TASKS = ("text_classification", "image_classification", "speech_recognition")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(start=None, task=None, model="some/model", train=FRAME, output_dir=None, **settings) -> Recipe:
    data = {role: settings.pop(role, None) for role in ("validation", "test")}
    flags = {name: settings.pop(name, False) for name in ("resume", "overwrite")}
    return recipe_of(
        start, task=task, model=model, data={"train": train, **data}, settings=settings, output_dir=output_dir, **flags
    )


def value(found: Recipe, key: str):
    for part in key.split("."):
        found = getattr(found, part)
    return found


VALUES = {
    "text": "review",
    "text_pair": "other",
    "label": ["a", "b"],
    "image": "photo",
    "audio": "clip",
    "transcript": "said",
    "epochs": 1.5,
    "batch_size": 4,
    "eval_batch_size": 5,
    "optimizer": "sgd",
    "scheduler": "cosine",
    "patience": 2,
    "metric": "loss",
    "revision": "main",
}


def test_every_short_name_has_an_example():
    assert set(VALUES) | {"training"} == set(SHORT_NAMES)


def test_names_of_other_programs_are_keys_of_recipes():
    keys = {key for task in TASKS for key in known_settings(task).values()} | {"data.name", "model.name", "optim.args"}
    assert set(OTHER_NAMES.values()) <= keys
    assert not set(OTHER_NAMES) & set(SHORT_NAMES)


@pytest.mark.parametrize("name", VALUES)
def test_short_names(name):
    found = recipe(task="text_classification", **{name: VALUES[name]})
    assert value(found, SHORT_NAMES[name]) == VALUES[name]


def test_keys_by_their_own_names():
    found = recipe(
        task="text_classification",
        learning_rate=np.float32(0.5),
        max_length=np.int64(7),
        test_fraction=0.3,
        num_train_epochs=2,
        pooling="mean",
        save_total_limit=3,
        seed=np.int64(4),
        freeze=("backbone",),
        args={"momentum": 0.9},
    )
    assert (found.optim.learning_rate, found.task.max_length, found.data.test_fraction) == (0.5, 7, 0.3)
    assert (found.train.num_train_epochs, found.model.pooling, found.checkpoint.save_total_limit) == (2, "mean", 3)
    assert (found.seed, found.train.freeze, found.optim.args) == (4, ["backbone"], {"momentum": 0.9})


def test_values_are_taken_as_they_are():
    found = recipe(task="text_classification", text="no", label="#1 [a]: {b}", model="null")
    assert (found.data.text_column, found.data.label_column, found.model.name) == ("no", "#1 [a]: {b}", "null")
    assert recipe(task="text_classification", text=0, label=1).data.text_column == "0"


def test_sections_and_dotted_keys():
    found = recipe(
        task={"name": "text_classification", "max_length": 9},
        model={"name": "some/model", "revision": "v1"},
        optim={"name": "sgd"},
        training={"max_steps": 3},
        data={"test_split": None},
        techniques=["mixup", {"name": "ema", "decay": 0.5}],
        **{"optim.args": {"momentum": 0.5}, "eval.eval_steps": 2},
    )
    assert (found.task.max_length, found.model.revision, found.data.test_split) == (9, "v1", None)
    assert (found.optim.name, found.optim.args, found.train.max_steps) == ("sgd", {"momentum": 0.5}, 3)
    assert found.eval.eval_steps == 2 and found.data.name == "memory"
    assert [one.name for one in found.techniques] == ["mixup", "ema"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epoch": 3}, "'epoch'|did you mean epochs"),
        ({"learnin_rate": 3}, "did you mean learning_rate"),
        ({"lr": 3}, "'lr'|did you mean learning_rate?"),
        ({"num_epochs": 3}, "did you mean num_train_epochs?"),
        ({"optimiser": {"name": "sgd"}}, "did you mean optimizer"),
        ({"optim": "sgd"}, "optim|dict"),
        ({"optim": {"nam": "sgd"}}, "optim.nam|did you mean name"),
        ({"epochs": "many"}, "train.num_train_epochs|'many'"),
        ({"epochs": 1, "num_train_epochs": 2}, "'epochs' and 'num_train_epochs'"),
        ({"techniques": ["mixupp"]}, "mixup"),
        ({"optim.nam": 3}, "optim.nam"),
        ({"max_seconds": 3}, "'max_seconds'"),  # of another task
        ({"model": object()}, "object|Hub id"),
        ({"task": "text"}, "'text'|text_classification"),
        ({"train": None, "test": FRAME}, "train is missing"),
        ({"train": FRAME, "test": "test.csv"}, "test.csv|in memory"),
        ({"train": "a/b", "test": "nowhere.csv"}, "a/b|not a file"),
        ({"train": ["good", "bad"], "label": ["x", "y"]}, """train=[{"text": ..., "label": ...}|name its keys"""),
        ({"train": ["a.jpg"], "task": "image_classification"}, """{"image": ..., "label": ...}"""),
        ({"train": ["good", "bad", "fine"], "label": ["x", "y", "x"]}, "label names a column|list of 3 values"),
        ({"text": ["good", "bad"]}, "text names a column|DataFrame"),
        ({"text": FRAME["review"]}, "text names a column|Series"),
        ({"label": FRAME["stars"]}, "label names a column|Series"),
        ({"hub_model_id": "hf_" + "a" * 34}, "hub_model_id|token"),
    ],
)
def test_what_is_wrong_is_named(settings, words):
    with pytest.raises(UserError) as error:
        recipe(**{"task": "text_classification", **settings})
    assert all(word in str(error.value) for word in words.split("|")), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("column", "task"), [("text", TASKS[0]), ("image", TASKS[1]), ("audio", TASKS[2])])
def test_the_task_follows_from_the_column(column, task):
    assert recipe(**{column: "x"}).task.name == task
    with pytest.raises(UserError, match="task is missing"):
        recipe()


@pytest.mark.parametrize("task", TASKS)
def test_names_are_keys_of_recipes(task):
    known = known_settings(task)
    assert all(key.split(".")[0] in {*Recipe.model_fields} for key in known.values())
    assert {"train", "name", "sha256"}.isdisjoint(known), "these mean something else, or several things"


def test_a_recipe_with_other_data_keeps_its_settings():
    before = load_recipe("text")
    found = recipe("text", model=None, text="review", label="stars", epochs=9)
    assert found.model == before.model and found.optim == before.optim and found.task == before.task
    assert found.train.num_train_epochs == 9
    assert found.data.name == "memory" and found.data.text_column == "review" and found.data.data_files is None
    assert Path(found.output_dir) == Path("runs/text").resolve()


def test_a_recipe_with_another_model_drops_what_belonged_to_its_own():
    found = recipe("text", model="other/model", train=None)
    before = load_recipe("text")
    assert (found.model.name, found.model.revision, found.model.mirror) == ("other/model", None, None)
    assert before.model.revision and before.model.mirror
    assert found.data == before.data
    assert recipe("text", model={"attn_implementation": "eager"}, train=None).model.mirror == before.model.mirror


def test_a_recipe_object(tmp_path):
    before = load_recipe("text", ["output_dir=mine", "seed=7"])
    found = recipe(before, model=None, train=None, learning_rate=1.0)
    assert (found.seed, found.optim.learning_rate, Path(found.output_dir)) == (7, 1.0, (tmp_path / "mine").resolve())
    assert before.optim.learning_rate != 1.0
    with pytest.raises(UserError, match="DataFrame"):
        recipe(FRAME)


def test_files_without_a_task_are_shown_as_rows_of_their_kind():
    for file, columns in {"a.jpg": '{"image": ..., "label"', "a.wav": '{"audio": ..., "transcript"'}.items():
        with pytest.raises(UserError) as error:
            recipe(train=[file])
        assert columns in str(error.value)


def test_data_without_a_name():
    with pytest.raises(UserError, match=r"DataFrame.*train="):
        finetune("text", FRAME, text="review", label="stars")


def test_code_of_a_checkpoint_is_allowed_by_the_call_alone(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "task: {name: text_classification}\nmodel: {name: a/b, trust_remote_code: true}\ndata: {name: c/d}\n"
    )
    with pytest.raises(RecipeError, match="trust_remote_code"):
        recipe("own.yaml", model=None, train=None)
    assert recipe("own.yaml", model=None, train=None, trust_remote_code=True).model.trust_remote_code


def test_names_of_data(tmp_path):
    for name in ("data/train.csv", "data/test.csv", "other.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\n")
    assert recipe(train="org/name", text="t").data.name == "org/name"
    assert recipe(train=Path("data/train.csv"), text="t").data.name == str((tmp_path / "data/train.csv").resolve())
    data = recipe(train="data/train.csv", test="data/test.csv", text="t").data
    assert (data.name, data.data_files) == (
        str((tmp_path / "data").resolve()),
        {"train": "train.csv", "test": "test.csv"},
    )
    data = recipe(train="data/train.csv", validation="other.csv", text="t").data
    assert data.data_files == {"train": "data/train.csv", "validation": "other.csv"}


def test_two_runs_do_not_meet(monkeypatch):
    assert recipe(text="t").output_dir.endswith("runs/text_classification")
    assert free_folder("mine") == Path("runs/mine")
    for name in ("mine", "mine-2"):
        assert free_folder("mine") == Path("runs", name)
        Path("runs", name).mkdir(parents=True)
    assert free_folder("mine") == Path("runs/mine-3")
    assert free_folder("mine", resume=True) == free_folder("mine", resume="auto") == Path("runs/mine-2")
    assert free_folder("mine", overwrite=True) == Path("runs/mine")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="output_dir"):
        free_folder("mine")
    assert recipe(text="t", output_dir="runs/mine").output_dir.endswith("runs/mine")
