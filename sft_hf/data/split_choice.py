"""Which split of a data set serves which role: train, validation or test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from sft_hf.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from sft_hf.recipe import DataSection

ROLES = ("train", "validation", "test")

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""Names that stand for each other, the first that is there wins; an exact match comes before them all."""


def choose(
    section: DataSection, available: Sequence[str], what: str, advice: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Return {role: name of the split}, and notes. Raises DataError for a split that is not there."""
    wanted = {role: getattr(section, f"{role}_split") for role in ROLES}
    chosen = {}
    for role, name in wanted.items():
        if name is None:
            continue
        same = VALIDATION_NAMES if name in VALIDATION_NAMES else ()
        found = next((other for other in (name, *same) if other in available), None)
        if found is not None:
            chosen[role] = found
        elif role == "train" or name != role:
            hint = did_you_mean(name, available)
            raise DataError(f"{what}: no split {name!r} (data.{role}_split); {hint}{advice}")
    return _resolve_conflicts(chosen, wanted)


def _resolve_conflicts(chosen: dict[str, str], wanted: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """One split must not serve two roles; a role that only has its default name gives way."""
    notes = []
    for pair in combinations(ROLES, 2):
        if pair[0] not in chosen or chosen[pair[0]] != chosen.get(pair[1]):
            continue
        gives_way = [role for role in pair if wanted[role] == role]
        if len(gives_way) != 1 or gives_way == ["train"]:
            keys = " and ".join(f"data.{role}_split" for role in pair)
            raise DataError(
                f"{keys} both name the split {chosen[pair[0]]!r}; name another, or null to hold out of train"
            )
        (role,) = gives_way
        (other,) = set(pair) - {role}
        notes.append(f"{role}: not the split {chosen.pop(role)!r}, which data.{other}_split makes {other}")
    return chosen, notes


def unused(chosen: Mapping[str, str], available: Sequence[str]) -> list[str]:
    """Return the note that names the splits that serve no role; none if there are none."""
    rest = [name for name in available if name not in chosen.values()]
    return [f"not used: split{'s' * (len(rest) > 1)} {', '.join(rest)}"] if rest else []


def split_names(section: DataSection) -> list[str]:
    """Return the names that a split may have for a data section."""
    return [*(name for role in ROLES if (name := getattr(section, f"{role}_split"))), *VALIDATION_NAMES]
