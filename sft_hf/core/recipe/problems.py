"""One-line messages about keys and values of a recipe that do not validate."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sft_hf.core.errors import did_you_mean
from sft_hf.core.recipe.registry import component_names, load_settings
from sft_hf.core.recipe.short_names import keys_meant


def about_settings(name: str, error: ValidationError) -> str:
    """Return a one-line message about the first invalid setting of a technique."""
    settings = load_settings("techniques", name)
    problem = error.errors()[0]
    key = ".".join(str(part)[:100] for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{name}: {key}: unknown key; {did_you_mean(key, list(settings.model_fields), limit=40)}"
    if problem["type"] == "missing":
        return f"{name}: {key}: missing; {settings.model_fields[key].description}"
    message = problem["msg"].removeprefix("Value error, ")
    told = message if problem["type"] == "value_error" else f"{message[:1].lower()}{message[1:]}"
    return f"{name}: {key or 'settings'}: {told}, not {problem['input']!r:.80}"


def first_problem(error: ValidationError, data: dict[str, Any], recipe: type[BaseModel]) -> tuple[str, str]:
    """Return the first invalid key of `data`, and a one-line message about it. `recipe`: the class `Recipe`."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    # A task's settings are validated by their own class; pydantic then reports the inner location already joined.
    location = [str(part)[:100] for part in problem["loc"]]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        text = f"{path}: unknown key; {_key_hint(location, data, recipe)}"
    elif problem["type"] == "missing":
        text = f"{path}: missing; {_description(location, recipe) or 'it is required'}"
    elif problem["type"] in ("model_type", "model_attributes_type"):
        text = f"{path}: {_section_hint(location, problem['input'], data, recipe)}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        text = (
            f"{path}: {message[:1].lower()}{message[1:]}, not {problem['input']!r:.80}"
            if problem["type"] != "value_error"
            else f"{path}: {message}"
        )
    if problem["type"] == "list_type":
        text += "; write it in brackets: [...]"
    others = len(problems) - 1
    return path, text + (f" (and {others} more)" if others else "")


def section_class(location: Sequence[str], data: dict[str, Any], recipe: type[BaseModel]) -> type[BaseModel] | None:
    """Return the class of a section or of the task at `location`; None if there is none."""
    section = recipe
    for depth, part in enumerate(location):
        if not depth and part == "task":
            task = data.get("task")
            section = load_settings("tasks", task if isinstance(task, str) else task["name"])  # type: ignore[index]
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            return None
        section = inner
    return section


def _section_hint(location: Sequence[str], value: Any, data: dict[str, Any], recipe: type[BaseModel]) -> str:
    """Return what to write for a plain value in place of a section."""
    path, keys = ".".join(location), _valid_keys(location, data, recipe)
    what = f"is a section of keys, not {value!r:.80}"
    if isinstance(value, str) and "name" in keys:
        return f"{what}; write {path}.name={value!r:.80} or {path}='{{name: {value:.80}}}'"
    return f"{what}; Valid: {', '.join(keys)}"


def _key_hint(location: Sequence[str], data: dict[str, Any], recipe: type[BaseModel]) -> str:
    """Return the hint for an unknown key: the key of a short name, the same name in other sections, or a near one."""
    valid = did_you_mean(location[-1], _valid_keys(location[:-1], data, recipe), limit=40)
    meant = keys_meant(location[-1], [*recipe.model_fields, *_nested_keys(data, recipe)])
    if not meant and len(location) == 1 and not valid.startswith("did you mean"):
        names = {key.partition(".")[2]: key for key in _nested_keys(data, recipe)}
        meant = [names[name] for name in difflib.get_close_matches(location[0], names, n=1, cutoff=0.75)]
    if len(location) > 2 or not 1 <= len(meant) <= 3:
        return valid
    return f"did you mean {' or '.join(meant)}? {valid[valid.find('Valid: ') :]}"


def _nested_keys(data: dict[str, Any], recipe: type[BaseModel]) -> list[str]:
    """Return section.key for all keys of sections; those of the recipe's task, or of all tasks if it is not valid."""
    task = data.get("task")
    name = task.get("name") if isinstance(task, dict) else task
    known = component_names("tasks")
    sections = [(part, section_class([part], data, recipe)) for part in recipe.model_fields if part != "task"]
    sections += [("task", load_settings("tasks", one)) for one in ([name] if name in known else known)]
    return list(dict.fromkeys(f"{part}.{key}" for part, kind in sections if kind for key in kind.model_fields))


def _valid_keys(location: Sequence[str], data: dict[str, Any], recipe: type[BaseModel]) -> list[str]:
    section = section_class(location, data, recipe)
    return list(section.model_fields) if section else []


def _description(location: Sequence[str], recipe: type[BaseModel]) -> str:
    section = section_class(location[:-1], {}, recipe) if location[:1] != ["task"] else None
    field = section.model_fields.get(location[-1]) if section else None
    return field.description or "" if field else ""
