"""Find recipe files by name."""

from __future__ import annotations

import os
from pathlib import Path

from sft_hf.core.errors import RecipeError, did_you_mean


def recipe_folders() -> list[Path]:
    """Return the folders that are searched for recipes: ./recipes, then the one that comes with the package."""
    package = Path(__file__).resolve().parents[2]
    shipped = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return [folder for folder in dict.fromkeys((Path("recipes").resolve(), shipped)) if folder.is_dir()]


def list_recipes() -> dict[str, Path]:
    """Return the available recipes, name -> file; the first folder takes precedence."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by name or path. Raises RecipeError with the names that exist."""
    path = Path(os.path.expanduser(name))
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if os.path.isfile(path):
            return path
        raise RecipeError(f"{name[:300]}: no such recipe file")
    known = list_recipes()
    if name in known:
        return known[name]
    raise RecipeError(f"no recipe is called {name!r}; {did_you_mean(name, known)}; or give a path to a YAML file")
