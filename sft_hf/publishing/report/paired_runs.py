"""Row-by-row comparison of runs on the same rows with the best of them; see `sft_hf.tasks.scoring.paired`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.names import source_name
from sft_hf.tasks.scoring.paired import Difference, holm, paired_difference

LEVEL = 0.05  # corrected p value below which two runs differ
_CONTENT = ("text", "path")  # fields of a row of predictions.jsonl, if present


@dataclass(frozen=True)
class Compared:
    """A run compared with the best one: `difference` is run minus best; None, with a `reason`, if nothing was tested.

    `p_value` is corrected by Holm's method for the number of tested runs.
    """

    difference: Difference | None
    p_value: float | None = None
    reason: str = ""

    @property
    def is_behind(self) -> bool:
        """Whether the run is significantly worse."""
        return self.p_value is not None and self.p_value < LEVEL


def against_best(best: RunRecord, others: Sequence[RunRecord]) -> list[Compared]:
    """Compare each of the other runs with the best one, in order."""
    found = [_against(best, other) for other in others]
    tested = [compared.difference for compared in found if compared.difference is not None]
    corrected = iter(holm([difference.p_value for difference in tested]))
    return [
        compared if compared.difference is None else Compared(compared.difference, next(corrected))
        for compared in found
    ]


def _against(best: RunRecord, other: RunRecord) -> Compared:
    if not best.scores or not other.scores:
        return Compared(None, reason="no score")
    pairs = _same_rows(best, other)
    if pairs is None:
        return Compared(None, reason="other rows")
    references = [row["reference"] for row, _ in pairs]
    theirs, ours = ([pair[side].get("prediction") for pair in pairs] for side in (1, 0))
    difference = paired_difference(best.primary, references, theirs, ours)
    return Compared(difference, reason="" if difference else f"no paired test of {best.primary}")


def _same_rows(one: RunRecord, other: RunRecord) -> list[tuple[dict[str, Any], dict[str, Any]]] | None:
    """Return the answers of both, row by row; None unless they have the same rows and references."""
    names = [source_name(record.recipe.data.name) for record in (one, other)]
    if one.split != other.split or names[0] != names[1] or len(one.predictions) != len(other.predictions):
        return None
    theirs = {row["id"]: row for row in other.predictions}
    pairs = [(row, theirs[row["id"]]) for row in one.predictions if row["id"] in theirs]
    if not pairs or len(pairs) < len(one.predictions):
        return None
    for row, its in pairs:
        keys = ("reference", *(key for key in _CONTENT if key in row and key in its))
        if row.get("reference") is None or any(row.get(key) != its.get(key) for key in keys):
            return None
    return pairs
