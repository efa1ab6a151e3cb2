"""Find tasks and techniques by name: the file name is the registry.

`name: mixup` in a recipe is the class `Mixup` in `sft_hf/techniques/*/mixup.py`, and its settings are the class
`MixupSettings` in `settings.py` of the same folder; `name: text_classification` of a task is the class
`TextClassification` in `sft_hf/tasks/text/task.py`, and its settings are the class `TextClassificationSettings` in
`sft_hf/tasks/text/settings.py`. Settings are found without importing the task or technique itself, which needs torch.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sft_hf.core.errors import RecipeError, did_you_mean

TASK_FOLDERS = {"image_classification": "image", "speech_recognition": "speech", "text_classification": "text"}


@cache
def _modules(kind: str) -> dict[str, str]:
    """Return {name: module} of a kind of component, sorted by name."""
    if kind == "tasks":
        return {name: f"sft_hf.tasks.{folder}.task" for name, folder in TASK_FOLDERS.items()}
    package = Path(__file__).parents[2]
    files = sorted((package / kind).glob("*/*.py"), key=lambda path: path.stem)
    names = {path.stem: path for path in files if not path.stem.startswith("_") and path.stem != "settings"}
    return {
        name: ".".join(("sft_hf", *path.relative_to(package).with_suffix("").parts)) for name, path in names.items()
    }


def component_names(kind: str) -> list[str]:
    """Return the names that a recipe may use for a kind of component ("tasks", "techniques"), sorted."""
    return list(_modules(kind))


@contextmanager
def importing() -> Iterator[None]:
    """Disable garbage collection while heavy modules are imported: they create a million long-lived objects.

    Repeated collections would take a quarter of the import time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_component(kind: str, name: str) -> Any:
    """Return the class for a name. Raises RecipeError with the valid names if there is none."""
    module = _module_of(kind, name)
    with importing():
        return getattr(importlib.import_module(module), _class_name(name))


def load_settings(kind: str, name: str) -> Any:
    """Return the settings class for a name, without importing torch. Raises RecipeError like `load_component`."""
    folder = _module_of(kind, name).rpartition(".")[0]
    return getattr(importlib.import_module(f"{folder}.settings"), f"{_class_name(name)}Settings")


def _module_of(kind: str, name: str) -> str:
    known = component_names(kind)
    if name not in known:
        raise RecipeError(f"no {kind[:-1]} is called {name!r}; {did_you_mean(name, known)}")
    return _modules(kind)[name]


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
