"""What a new user is told after a slip, and whether the remedy fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sft_hf.cli.training import _summary
from sft_hf.core.errors import CheckpointError, DataError, RecipeError
from sft_hf.core.filesystem import no_such_file
from sft_hf.core.sources.sources import Source
from sft_hf.data.loading.hub import refuse
from sft_hf.models.loading import checkpoint_errors


@pytest.mark.parametrize(
    ("section", "key", "near"), [("optim", "learning_rat", "learning_rate"), ("data", "nam", "name")]
)
def test_an_unknown_key_in_python_is_named_without_its_value(make_recipe, section, key, near):
    with pytest.raises(RecipeError, match=rf"{key}: unknown key; did you mean {near}\?") as caught:
        setattr(getattr(make_recipe(), section), key, 12345)
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize("typed", ["reviws.csv", "pictures2"])
def test_a_file_that_is_not_there_lists_what_the_folder_holds(tmp_path, typed):
    for name in ("reviews.csv", "pictures"):
        (tmp_path / name).write_text("")
    said = no_such_file(tmp_path / typed)
    assert "did you mean" in said and "The folder holds: pictures, reviews.csv" in said


def test_a_file_in_no_folder_and_in_an_empty_one(tmp_path):
    assert "the folder does not exist either" in no_such_file(tmp_path / "none" / "a.csv")
    assert "the folder is empty" in no_such_file(tmp_path / "a.csv")


@pytest.mark.parametrize(("typed", "right"), [("animalz", "animals"), ("sets/revews", "sets/reviews")])
def test_a_misspelled_folder_that_is_no_data_set_either_is_suggested(tmp_path, monkeypatch, typed, right):
    monkeypatch.chdir(tmp_path)
    (tmp_path / right).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"no local file or folder '{typed}'; did you mean '{right}'\?"):
        refuse(ConnectionError("no network"), "Hub data set", typed)


def test_a_misspelled_folder_of_a_model_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    source = Source("my-modl", "hub", None, None, None)
    with pytest.raises(CheckpointError, match=r"did you mean 'my-model'\?"), checkpoint_errors(source, "config.json"):
        raise OSError("not found")


def test_a_data_set_with_no_file_of_a_similar_name_has_no_such_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        refuse(ConnectionError("no network"), "Hub data set", "stanfordnlp/imdb")
    assert "local file or folder" not in str(caught.value)


@pytest.mark.parametrize(("total", "words"), [(400.0, "400 s in all"), (60.0, "60 s since the last resume")])
def test_a_resumed_run_is_not_said_to_have_taken_less_than_its_steps(total, words):
    train = {"num_steps": 10, "examples_per_second": 2.0, "runtime_seconds": 300.0, "total_seconds": total}
    metrics = {"primary_metric": "accuracy", "train": train}
    assert words in "\n".join(_summary(SimpleNamespace(metrics=metrics, hub_url=None), "runs/a"))
