"""Names of splits: synonyms, case-insensitive."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

ROLES = ("train", "validation", "test")

SAME_NAMES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing"))
"""Synonymous names of splits, case-insensitive; see `find_split`."""

SPLIT_COLUMNS = tuple(
    written for name in ("split", "set", "subset", "partition") for written in (name, name.title(), name.upper())
)
"""Columns of a table that may name the split of each row."""


class SplitNames(Collection[str]):
    """The possible names of splits; membership is case-insensitive."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._folded = {name.casefold() for name in self.names}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._folded

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def split_names(section: DataSection) -> SplitNames:
    """Return the possible names of splits for a recipe."""
    wanted = [name for role in ROLES if (name := getattr(section, f"{role}_split"))]
    return SplitNames([*wanted, *(other for name in (*wanted, "validation") for other in _same(name))])


def find_split(name: str, available: Collection[str]) -> str | None:
    """Return the split with this name or a synonym of it, ignoring case."""
    names = (name, *_same(name))
    folded = {other.casefold(): other for other in sorted(available, reverse=True)}
    exact = next((other for other in names if other in available), None)
    return exact or next((folded[other.casefold()] for other in names if other.casefold() in folded), None)


def _same(name: str) -> tuple[str, ...]:
    return next((names for names in SAME_NAMES if name in names), ())
