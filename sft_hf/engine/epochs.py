"""Sources of training epochs: a data set in memory, or a stream that is read one buffer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, Value

from sft_hf.core.errors import DataError
from sft_hf.data.loading.roles import ROW_ID
from sft_hf.engine.batches import StepBatch, plan_epoch, unlabeled_order

if TYPE_CHECKING:
    from datasets import IterableDataset

    from sft_hf.data.examples import Examples


@dataclass(frozen=True)
class BatchSizes:
    """How rows are divided into batches; see `sft_hf.engine.batches.plan_epoch`."""

    batch_size: int
    accumulation: int
    world_size: int
    seed: int
    group_by_length: bool

    def plan(self, lengths: np.ndarray, epoch: int) -> list[StepBatch]:
        """Return the batch plan of an epoch over rows of these lengths."""
        return plan_epoch(
            lengths if self.group_by_length else np.ones_like(lengths),
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            world_size=self.world_size,
            seed=self.seed,
            epoch=epoch,
            group_by_length=self.group_by_length,
        )


Changed = Callable[["Examples", int], Sequence[dict[str, Any]]]
"""Returns the features of an epoch's rows as techniques change them, given the rows and the epoch."""


@dataclass(frozen=True)
class Unlabeled:
    """Unlabeled rows to train on in addition to the labeled ones: `per_row` for each labeled row of a step."""

    examples: Examples
    per_row: int = 1


class InMemoryEpochs:
    """Epochs over rows that are all prepared before training; an epoch is one pass.

    `changed` and `sampled` are hooks of techniques: they return an epoch's features, and its rows (indices; None: each
    row once). `unlabeled_views` are the views of `unlabeled` rows that techniques need.
    """

    unlabeled: Unlabeled | None = None
    unlabeled_views: tuple[str, ...] = ()
    changed: Changed | None = None
    sampled: Callable[[Examples, int], np.ndarray | None] | None = None

    def __init__(self, examples: Examples, sizes: BatchSizes) -> None:
        self.examples = examples
        self.sizes = sizes
        self.steps_per_epoch = len(sizes.plan(examples.lengths, 0))

    def epoch(self, index: int) -> tuple[Examples, list[StepBatch]]:
        """See `sft_hf.engine.loop.TrainingData`."""
        rows = self.sampled(self.examples, index) if self.sampled else None
        if rows is None:
            plan = self.sizes.plan(self.examples.lengths, index)
        else:
            plan = [step.of(rows) for step in self.sizes.plan(self.examples.lengths[rows], index)]
        seen = _seen(self.examples, index, self.changed)
        if self.unlabeled is None or not self.unlabeled_views:
            return seen, plan
        views = {name: self.unlabeled.examples.view(name, index).features for name in self.unlabeled_views}
        return replace(seen, unlabeled=views), self._with_unlabeled(plan, index, self.unlabeled)

    def _with_unlabeled(self, plan: list[StepBatch], epoch: int, unlabeled: Unlabeled) -> list[StepBatch]:
        start, found = epoch * len(self.examples) * unlabeled.per_row, []
        for step in plan:
            labeled = len(step.rows())
            count = labeled * unlabeled.per_row
            rows = unlabeled_order(len(unlabeled.examples), start, count, self.sizes.seed)
            found.append(step.with_unlabeled(rows.reshape(labeled, unlabeled.per_row)))
            start += count
        return found


def _seen(examples: Examples, epoch: int, changed: Changed | None) -> Examples:
    view = examples.view("train", epoch)
    return view if changed is None else replace(view, features=changed(view, epoch))


class StreamEpochs:
    """Epochs over a stream: an "epoch" of the loop is one buffer of rows, shuffled and grouped by length together.

    When the stream ends it starts again from its first row. Resuming at buffer `n` reads the `n` buffers before it
    again, since a stream cannot seek.
    """

    changed: Changed | None = None

    def __init__(
        self,
        stream: IterableDataset,
        buffer_size: int,
        prepare: Callable[[Dataset], Examples],
        sizes: BatchSizes,
        where: str,
    ) -> None:
        self.stream, self.buffer_size, self.prepare, self.sizes, self.where = (
            stream,
            buffer_size,
            prepare,
            sizes,
            where,
        )
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._next = 0
        self._read = 0

    def epoch(self, index: int) -> tuple[Examples, list[StepBatch]]:
        """See `sft_hf.engine.loop.TrainingData`. Raises DataError for an empty stream."""
        if index < self._next:
            self._rows, self._next, self._read = iter(()), 0, 0
        while True:
            rows = self._take()
            self._next += 1
            if self._next == index + 1:
                features = self.stream.features  # with the names of class labels, which plain rows lack
                if features is not None:
                    features = Features({**features, ROW_ID: Value("int64")})
                examples = _seen(self.prepare(Dataset.from_list(rows, features)), index, self.changed)
                return examples, self.sizes.plan(examples.lengths, index)

    def _take(self) -> list[dict[str, Any]]:
        rows = list(islice(self._rows, self.buffer_size))
        if not rows:
            self._read = 0
            self._rows = iter(self.stream)
            rows = list(islice(self._rows, self.buffer_size))
        if not rows:
            raise DataError(f"{self.where}: the stream holds no rows")
        numbered = [{**row, ROW_ID: self._read + offset} for offset, row in enumerate(rows)]
        self._read += len(rows)
        return numbered
