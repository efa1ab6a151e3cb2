"""The roles of splits in a run, and the assignment of a data set's splits to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.loading import media
from sft_hf.data.loading.split_names import ROLES, find_split

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection
    from sft_hf.data.findings import Finding
    from sft_hf.data.loading.hub import Data

ROW_ID = "row_id"
"""Position of a row in its file or split, before any rows were held out or removed.

Row numbers start at 0 everywhere, as in pandas and `datasets`: in messages, reports, predictions and outputs. Line
numbers of text files in messages start at 1, as in editors, and are called "line"."""


@dataclass(frozen=True)
class Splits:
    """The data of a run by role ("train", "validation", "test"); roles without data are absent.

    `where` is the source of each role's rows for messages: "train.csv" or "org/name [train]". `notes` are sentences
    about choices made while loading, for the log; `findings` are about the data, for log, check and report. `revision`
    is the commit of a Hub data set; None if it is unknown (streams) or there is none.
    """

    by_role: dict[str, Data]
    where: dict[str, str]
    notes: list[str] = field(default_factory=list)
    revision: str | None = None
    findings: list[Finding] = field(default_factory=list)


def choose(
    section: DataSection, available: Sequence[str], what: str, advice: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Return {role: name of the split}, and notes. Raises DataError for a split that does not exist."""
    wanted = {role: getattr(section, f"{role}_split") for role in ROLES}
    chosen = {}
    for role, name in wanted.items():
        if name is None:
            continue
        found = find_split(name, available)
        if found is not None:
            chosen[role] = found
        elif role == "train" or name != role:
            hint = did_you_mean(name, available)
            raise DataError(f"{what}: no split {name!r} (data.{role}_split); {hint}{advice}")
    return _resolve_conflicts(chosen, wanted)


def _resolve_conflicts(chosen: dict[str, str], wanted: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """A split must not have two roles; a role for which only the default name applies is dropped."""
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
    """Return the note on splits without a role."""
    rest = [name for name in available if name not in chosen.values()]
    return [f"not used: split{'s' * (len(rest) > 1)} {', '.join(rest)}"] if rest else []


def by_name(section: DataSection, found: Mapping[str, Data], short: str, what: str) -> Splits:
    """Return the splits of a data set with named splits; `short` and `what` are its names in notes and errors."""
    from datasets import Dataset  # takes half a second to import; not needed by `predict`

    chosen, notes = choose(section, list(found), what)
    splits = Splits({}, {}, notes + unused(chosen, list(found)))
    for role, name in chosen.items():
        data = media.undecoded(found[name])
        splits.where[role] = f"{short} [{name}]"
        if section.streaming and role == "train":
            splits.by_role[role] = data.to_iterable_dataset() if isinstance(data, Dataset) else data
        else:
            splits.by_role[role] = data if isinstance(data, Dataset) else Dataset.from_list(list(data), data.features)
    return splits
