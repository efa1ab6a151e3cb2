"""A recipe for publication, without local paths and accounts."""

from __future__ import annotations

import re
from typing import Any

from sft_hf.core.recipe.recipe import NON_IDENTITY_KEYS, Recipe
from sft_hf.publishing.names import is_hub_id, last_part

_LOCAL = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|\.\.?(?:[/\\]|$)")
_NO_PATHS = (
    "label_names",
    "key_mapping",
    "delimiter",
    "quote_char",
    "column_names",
    "sheet",
)  # and *_column, *_split: names in the data


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data without keys about the author's run (`output_dir`, `hub_model_id`, ...), and with
    local paths reduced to their last part.

    A local model or data set `/home/me/reviews` becomes `./reviews`, which is resolved relative to the recipe and
    cannot be mistaken for a Hub id. The result is a valid recipe.
    """
    data = recipe.model_dump(mode="json", exclude=set(NON_IDENTITY_KEYS - {"license"}))
    for section in ("model", "data"):
        name = data[section]["name"]
        if not name.startswith("pypi://") and not is_hub_id(name):
            data[section]["name"] = f"./{last_part(name)}"
    return {key: _without_paths(value, key) for key, value in data.items()}


def _without_paths(value: Any, key: str) -> Any:
    if key in _NO_PATHS or key.endswith(("_column", "_split")):
        return value
    if isinstance(value, dict):
        return {name: _without_paths(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner, key) for inner in value]
    if isinstance(value, str) and _LOCAL.match(value) and value != f"./{last_part(value)}":
        return last_part(value)
    return value
