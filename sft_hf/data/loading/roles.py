"""The splits of a run, and which split of a data set serves which role."""

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
"""Position of a row in its file or split, before anything was held out or left away.

Rows are counted from 0 everywhere, as pandas and `datasets` do: in messages, reports, predictions and outputs. Where a
message names a line of a text file instead, it says "line", counted from 1 as editors do."""


@dataclass(frozen=True)
class Splits:
    """The data of a run by role ("train", "validation", "test"; absent ones are absent).

    `where` says for messages where a role's rows come from: "train.csv" or "org/name [train]". `notes` are sentences
    about what was decided on the way, for the log; `findings` are about the data, for log, check and report. `revision`
    is the commit of a Hub data set; None where it is not known (streams) or there is none.
    """

    by_role: dict[str, Data]
    where: dict[str, str]
    notes: list[str] = field(default_factory=list)
    revision: str | None = None
    findings: list[Finding] = field(default_factory=list)


def choose(
    section: DataSection, available: Sequence[str], what: str, advice: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Return {role: name of the split}, and notes. Raises DataError for a split that is not there."""
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
    """Return the note on splits that serve no role."""
    rest = [name for name in available if name not in chosen.values()]
    return [f"not used: split{'s' * (len(rest) > 1)} {', '.join(rest)}"] if rest else []


def by_name(section: DataSection, found: Mapping[str, Data], short: str, what: str) -> Splits:
    """Return the splits of a data set whose splits have names; `short` and `what` name it in notes and errors."""
    from datasets import Dataset  # half a second, which `predict` need not wait for

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
