"""Recipes without the paths of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sft_hf.core.recipe.recipe import validate_recipe
from sft_hf.core.recipe.yaml_files import write_yaml
from sft_hf.publishing.names import is_hub_id, last_part
from sft_hf.publishing.public_recipe import public_recipe

PYPI = "pypi://some-dist==1.0/some_dist/model"


def test_the_run_folder_and_local_paths_are_not_told(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe(
        data__data_files={"train": f"{tmp_path}/train.csv", "test": "part/test.csv"},
        model__config_overrides={"vocabulary": {"files": ["/home/me/words.txt"]}},
    )
    public = public_recipe(recipe)
    text = write_yaml(public)
    assert str(tmp_path.parent) not in text and "/home" not in text and "output_dir" not in text
    assert public["model"]["name"] == f"./{Path(recipe.model.name).name}"
    assert public["data"]["name"] == f"./{Path(recipe.data.name).name}"
    assert public["data"]["data_files"] == {"train": "train.csv", "test": "part/test.csv"}
    assert public["model"]["config_overrides"] == {"vocabulary": {"files": ["words.txt"]}}


def test_where_results_go_is_not_told(make_recipe: Any) -> None:
    recipe = make_recipe(push_to_hub=True, hub_model_id="me/secret", report_to=["wandb"], license="mit")
    public = public_recipe(recipe)
    assert not public.keys() & {"output_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "report_to"}
    assert public["license"] == "mit"


def test_the_rest_stays_and_validates_again(make_recipe: Any) -> None:
    recipe = make_recipe(data__label_names=["/", "~/b", "../a/b"], data__label_column="/label", seed=7)
    public = public_recipe(recipe)
    again = validate_recipe(public)
    assert public_recipe(again) == public
    assert again.data.label_names == recipe.data.label_names and again.data.label_column == "/label"
    kept = recipe.model_copy(deep=True)
    kept.model.name, kept.data.name, kept.output_dir = again.model.name, again.data.name, None
    assert again == kept


@pytest.mark.parametrize("name", ["distilbert/distilbert-base-uncased", "gpt2", PYPI])
def test_public_names_stay(make_recipe: Any, name: str) -> None:
    assert public_recipe(make_recipe(model__name=name))["model"]["name"] == name


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/home/me/reviews/", "reviews"),
        ("~me", "local"),
        ("~/reviews.csv", "reviews.csv"),
        ("../..", "local"),
        (r"C:\Users\me\reviews", "reviews"),
        ("C:/Users/me/my reviews", "my reviews"),
        ("/", "local"),
        ("reviews.csv", "reviews.csv"),
        ("a/b/c", "c"),
    ],
)
def test_paths_of_any_system_are_cut(make_recipe: Any, path: str, last: str) -> None:
    assert last_part(path) == last
    assert not is_hub_id(path)
    assert public_recipe(make_recipe(data__name=path))["data"]["name"] == f"./{last}"
