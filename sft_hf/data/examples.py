"""The rows of one split, ready for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Examples:
    """The rows of one split, ready for collating.

    `features[i]` is one input of `Task.collate`, as used in evaluation; `lengths` is the cost of each row, `row_ids`
    its 0-based position in the source, and `references` are the expected answers: None for every row of an unlabeled
    test split, whose rows are predicted but not scored.

    `views(name, epoch)` returns other versions of the rows, as features: "train", and for images "weak" and "strong".
    It is a pure function of the recipe's seed, the epoch and the row ids. None: there is only one version.

    `blank` has the same rows without the images or recordings: batches of the same shapes that are cheap to make, for
    code that ignores their content. None: `features` are already cheap.

    `unlabeled` has the features of additional rows without labels that training uses as well, by view.
    """

    features: Sequence[dict[str, Any]]
    lengths: np.ndarray
    row_ids: np.ndarray
    references: Sequence[Any]
    notes: list[str] = field(default_factory=list)
    views: Callable[[str, int], Sequence[dict[str, Any]]] | None = None
    blank: Sequence[dict[str, Any]] | None = None
    unlabeled: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def labelled(self) -> bool:
        """Whether there are references to compare predictions with."""
        return len(self.references) > 0 and self.references[0] is not None

    def take(self, rows: np.ndarray) -> Examples:
        """Return the rows with these indices, in this order."""
        return Examples(
            _Taken(self.features, rows), self.lengths[rows], self.row_ids[rows], [self.references[int(r)] for r in rows]
        )

    def view(self, name: str, epoch: int) -> Examples:
        """Return the rows as augmented for an epoch; unchanged if there is no augmentation."""
        return self if self.views is None else replace(self, features=self.views(name, epoch))


class _Taken(Sequence[dict[str, Any]]):
    """A subset of the rows of a sequence."""

    def __init__(self, features: Sequence[dict[str, Any]], rows: np.ndarray) -> None:
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.features[int(self.rows[index])]


def padding_waste(lengths: np.ndarray, batches: Sequence[tuple[int, ...]]) -> float:
    """Return the fraction of padding if each batch is padded to its longest row."""
    used = sum(int(lengths[list(batch)].sum()) for batch in batches)
    paid = sum(int(lengths[list(batch)].max()) * len(batch) for batch in batches)
    return 1.0 - used / paid if paid else 0.0
