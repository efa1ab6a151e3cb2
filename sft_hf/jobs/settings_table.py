"""The keyword settings of `sft_hf.finetune`, and the recipe keys that they set.

A setting is one of these:

    a short name      text="review"               see `sft_hf.core.recipe.short_names`
    a key's own name  learning_rate=1e-4          any key of model, data, train, optim, eval, checkpoint or the task
                                                  that is unique among these sections
    a section         optim={"name": "sgd"}       changes these keys of it; the section train is called `training` here
    a dotted key      **{"optim.args": {...}}

Values are not parsed as YAML.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from sft_hf.core.errors import RecipeError, UserError, did_you_mean
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.recipe.registry import component_names, load_settings
from sft_hf.core.recipe.short_names import SHORT_NAMES, key_meant

SECTIONS = ("model", "data", "train", "optim", "eval", "checkpoint")
"""The sections whose keys may be set by their own names."""

NOT_SETTINGS = ("train", "output_dir")
"""Keys of a recipe whose names are arguments of `finetune` with another meaning."""

MODALITIES = {"text": "text", "image": "image", "audio": "speech"}
"""Settings for the column of inputs, and the modality of their tasks."""


def known_settings(task: str | None) -> dict[str, str]:
    """Return all settings and the recipe keys that they set.

    `task` is the name of the recipe's task, whose settings are included; None if unknown.
    """
    classes: dict[str, Any] = {section: Recipe.model_fields[section].annotation for section in SECTIONS}
    if task is not None:
        classes["task"] = load_settings("tasks", task)
    own = [(name, f"{section}.{name}") for section, kind in classes.items() for name in kind.model_fields]
    names = [name for name, _ in own]
    once = {name: key for name, key in own if names.count(name) == 1}
    top = {name: name for name in Recipe.model_fields if name not in NOT_SETTINGS}
    return {**once, **top, **SHORT_NAMES}


def task_meant(settings: Collection[str]) -> str | None:
    """Return the task for the input column in `settings`; None if there is none or more than one."""
    wanted = {MODALITIES[name] for name in settings if name in MODALITIES}
    names = [name for name in component_names("tasks") if load_settings("tasks", name).modality in wanted]
    return names[0] if len(names) == 1 else None


def apply_settings(data: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's data with settings applied; see the module docstring for their forms.

    Raises UserError for an unknown setting, RecipeError if two settings set the same key.
    """
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    task = result.get("task")
    name = task if isinstance(task, str) else (task or {}).get("name")
    known = known_settings(name if name in component_names("tasks") else None)
    given: dict[str, str] = {}
    for setting, value in settings.items():
        key = known.get(setting, setting)
        section, _, rest = key.partition(".")
        if setting not in known and not (rest and section in ("task", *SECTIONS)):
            meant = next((own for own, key in known.items() if key == key_meant(setting)), setting)
            raise UserError(f"finetune() has no setting {setting!r}; {did_you_mean(meant, sorted(known), limit=40)}")
        if key in given:
            raise RecipeError(f"{given[key]!r} and {setting!r} both set {key}; give one of them")
        given[key] = setting
        _set(result, key, plain_value(value), setting)
    return result


def _set(result: dict[str, Any], key: str, value: Any, setting: str) -> None:
    section, _, rest = key.partition(".")
    if not rest and section in ("task", *SECTIONS):
        if isinstance(value, str) and section == "task":
            value = {"name": value}
        if not isinstance(value, dict):
            raise RecipeError(f"{setting}: is the section {section} of a recipe; give a dict of its keys")
        result[section] = {**_section(result, section), **value}
        return
    target = result
    parts = key.split(".")
    for part in parts[:-1]:
        target[part] = dict(_section(target, part))
        target = target[part]
    target[parts[-1]] = value


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    held = data.get(name) or {}
    return {"name": held} if isinstance(held, str) else dict(held)


def plain_value(value: Any) -> Any:
    """Return a setting as a plain value: paths as strings, tuples as lists, NumPy scalars as Python numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
