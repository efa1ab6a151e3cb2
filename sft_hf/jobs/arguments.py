"""Convert the arguments of `sft_hf.finetune` to a recipe and rows in memory."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import UserError, did_you_mean
from sft_hf.core.recipe.recipe import TRUST, Recipe, load_recipe, settle, validate_recipe
from sft_hf.core.recipe.registry import component_names, load_settings
from sft_hf.core.recipe.sections import MEMORY
from sft_hf.jobs.settings_table import MODALITIES, apply_settings, plain_value, task_meant

if TYPE_CHECKING:
    from datasets import Dataset

RUNS = "runs"  # parent folder of runs without an output_dir
WHERE = "finetune()"  # prefix of messages about the arguments


def recipe_of(
    recipe: Recipe | str | os.PathLike[str] | None,
    *,
    task: str | Mapping[str, Any] | None,
    model: str | os.PathLike[str] | Mapping[str, Any] | None,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    output_dir: str | os.PathLike[str] | None,
    resume: bool | str = False,
    overwrite: bool = False,
) -> Recipe:
    """Return the recipe that the arguments of `finetune` describe.

    Args:
        recipe: the recipe to start from; None: a new one.
        task, model: see `finetune`.
        data: the arguments train, validation and test, None if not given. Rows in memory, or a name, replace the data
            section of the recipe.
        settings: see `sft_hf.jobs.settings_table`.
        output_dir: the run folder; None: a new one in runs/, see `free_folder`.
        resume, overwrite: use an existing run folder.

    Raises UserError.
    """
    base, name = _start(recipe, settings)
    _check_columns(settings, task or base.get("task"))
    _check_rows(data, settings, task or base.get("task"))
    _set_task(base, task, settings)
    _set_model(base, model)
    if any(value is not None for value in data.values()):
        base["data"] = _data_section(data)
    found = validate_recipe(apply_settings(base, settings), WHERE)
    if output_dir is not None:
        found.output_dir = os.fspath(output_dir)
    elif recipe is None or isinstance(recipe, (str, os.PathLike)):
        found.output_dir = None
    if found.output_dir is None:
        found.output_dir = str(free_folder(name or found.task.name, resume, overwrite))
    settle(found, WHERE, found.output_dir)
    return found


def _start(recipe: Recipe | str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the recipe to start from as a dict, and the name of its runs."""
    if recipe is None:
        return {}, ""
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json"), ""
    if not isinstance(recipe, (str, os.PathLike)):
        raise UserError(
            f"{WHERE}: the recipe is a {type(recipe).__name__}; give its name, its path or a Recipe, and data as train="
        )
    section = settings.get("model")
    allowed = settings.get("trust_remote_code") or (isinstance(section, Mapping) and section.get("trust_remote_code"))
    loaded = load_recipe(os.fspath(recipe), [f"{TRUST}=true"] if allowed else [])
    return loaded.model_dump(mode="json"), Path(recipe).stem


def _check_columns(settings: Mapping[str, Any], task: Any) -> None:
    """Raise UserError for values in place of the name of a column."""
    for setting in ("label", "text_pair", "transcript", *MODALITIES):
        value = plain_value(settings.get(setting))
        names = value if isinstance(value, list) and setting == "label" else [value]
        if all(name is None or isinstance(name, (str, int)) for name in names) and len(set(names)) == len(names):
            continue
        count = f" of {len(value)} values" if hasattr(value, "__len__") else ""
        raise UserError(
            f"{WHERE}: {setting} names a column, and is a {type(value).__name__}{count}; give the rows as "
            f"train={_example(settings, task)} or as a DataFrame, and {setting}={setting!r}"
        )


def _check_rows(data: Mapping[str, Any], settings: Mapping[str, Any], task: Any) -> None:
    """Raise UserError for a list of inputs in place of rows."""
    for role, rows in data.items():
        if isinstance(rows, (list, tuple)) and rows and not isinstance(rows[0], Mapping):
            example = _example(settings, task, rows[0])
            raise UserError(
                f"{WHERE}: {role} row 0 is a {type(rows[0]).__name__}, {rows[0]!r:.40}; a list has a dict for each "
                f"row: {role}={example}; {' and '.join(re.findall('[a-z]+', example))} name its keys"
            )


def _example(settings: Mapping[str, Any], task: Any, value: Any = None) -> str:
    """Return rows in the form that is expected, with the columns of the task, or of the kind of file."""
    name = task.get("name") if isinstance(task, Mapping) else task
    columns = {modality: column for column, modality in MODALITIES.items()}
    file = (mimetypes.guess_type(os.fspath(value))[0] or "") if is_name(value) else ""
    column = next((column for column in MODALITIES if column in settings), file.partition("/")[0])
    if isinstance(name, str) and name in component_names("tasks"):
        column = columns[load_settings("tasks", name).modality]
    column = column if column in MODALITIES else "text"
    return f'[{{"{column}": ..., "{"transcript" if column == "audio" else "label"}": ...}}, ...]'


def _set_task(base: dict[str, Any], task: str | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> None:
    if task is None and "task" not in base:
        task = task_meant(settings)
        if task is None:
            raise UserError(f"{WHERE}: task is missing; {did_you_mean('', component_names('tasks'))}")
    if task is not None:
        given = {"name": task} if isinstance(task, str) else plain_value(task)
        before = base.get("task", {})
        same = given.get("name", before.get("name")) == before.get("name")
        base["task"] = {**before, **given} if same else given


def _set_model(base: dict[str, Any], model: str | os.PathLike[str] | Mapping[str, Any] | None) -> None:
    """Set the model. A different model does not inherit the recipe's model settings, such as revision and digest."""
    if model is None:
        return
    if not isinstance(model, (str, os.PathLike, Mapping)):
        hint = "; save it with model.save_pretrained(folder)" if hasattr(model, "save_pretrained") else ""
        raise UserError(f"{WHERE}: model is a {type(model).__name__}; give a Hub id, a local folder or file{hint}")
    given = plain_value(model) if isinstance(model, Mapping) else {"name": os.fspath(model)}
    before = base.get("model", {})
    same = given.get("name", before.get("name")) == before.get("name")
    base["model"] = {**before, **given} if same else given


# --- data --------------------------------------------------------------------------------------------------------


def is_name(value: Any) -> bool:
    """Return whether data are given as a path or a Hub id."""
    return isinstance(value, (str, os.PathLike))


def in_memory(data: Mapping[str, Any]) -> bool:
    """Return whether any of the given splits is in memory."""
    return any(value is not None and not is_name(value) for value in data.values())


def _data_section(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data section of the recipe."""
    if data.get("train") is None:
        raise UserError(f"{WHERE}: train is missing: validation and test need rows to train on")
    names = {role: os.fspath(value) for role, value in data.items() if is_name(value)}
    if in_memory(data):
        if names:
            role, name = next(iter(names.items()))
            raise UserError(
                f"{WHERE}: {role} is the name {name[:80]!r}, and other splits are in memory; read it first, as by "
                f"datasets.Dataset.from_csv({name[:80]!r}), or give names for all"
            )
        return {"name": MEMORY}
    if len(names) == 1:
        return {"name": names["train"]}
    paths = {role: Path(name).expanduser().absolute() for role, name in names.items()}
    for role, path in paths.items():
        if not path.is_file():
            raise UserError(
                f"{WHERE}: {role}={names[role]!r} is not a file; several names have to be files (a split of one data "
                f"set is chosen with data={{'{role}_split': ...}})"
            )
    folder = Path(os.path.commonpath([path.parent for path in paths.values()]))
    return {"name": str(folder), "data_files": {role: str(path.relative_to(folder)) for role, path in paths.items()}}


def rows_in_memory(data: Mapping[str, Any], recipe: Recipe) -> dict[str, Dataset] | None:
    """Return the splits in memory by role, as data sets; None if there are none. Raises DataError."""
    if not in_memory(data):
        return None
    import logging

    from sft_hf.data.in_memory.splits import as_splits
    from sft_hf.tasks.base import task_class

    columns = task_class(recipe)(recipe).reader.columns()
    splits, notes = as_splits(data, recipe.data, columns)
    for note in notes:
        logging.getLogger("sft_hf").info("%s", note)
    return splits


# --- the run folder ----------------------------------------------------------------------------------------------


def free_folder(name: str, resume: bool | str = False, overwrite: bool = False) -> Path:
    """Return the default run folder: runs/NAME, or the first of runs/NAME-2, -3, ... that does not exist.

    With `resume`, the last of these that exists; with `overwrite`, runs/NAME itself. Raises UserError in distributed
    runs, where one process could see the folder that another has just created.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{WHERE}: give an output_dir, as several processes have to choose the same")
    first = Path(RUNS, name)
    if overwrite:
        return first
    number, last = 1, first
    while (path := first if number == 1 else first.with_name(f"{name}-{number}")).exists():
        number, last = number + 1, path
    return last if resume else path
