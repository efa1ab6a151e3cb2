"""The file name is the registry: `name: mixup` in a recipe is the class `Mixup` in `sft_hf/techniques/mixup.py`."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_hf.errors import RecipeError, did_you_mean


def component_names(kind: str) -> list[str]:
    """Return the names that a recipe may use for a kind of component ("tasks", "techniques"), sorted."""
    folder = Path(__file__).parent / kind
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "base"))


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage while heavy modules are imported: they make a million objects, all to stay.

    Python would go through them again and again, which takes a quarter of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_component(kind: str, name: str) -> Any:
    """Return the class behind a name. Raises RecipeError with the valid names if there is none."""
    known = component_names(kind)
    if name not in known:
        raise RecipeError(f"no {kind[:-1]} is called {name!r}; {did_you_mean(name, known)}")
    with importing():
        module = importlib.import_module(f"sft_hf.{kind}.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))
