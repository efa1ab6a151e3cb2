"""The batch plan: which rows meet in which optimizer step, on which rank, in which order.

A whole epoch is laid out before it starts, as a pure function of (row lengths, batch sizes, world size, seed, epoch).
Resuming slices the plan; nothing is skipped through. The rows that an optimizer step sees depend only on the effective
batch size: 16 rows x 1, 4 x 4, 1 x 16 and two ranks of 8 hold the same rows: the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

STEPS_PER_BUCKET = 50  # rows are sorted by length within groups of this many steps: little padding, still random
UNLABELED = 0x0FF1CE  # tells the order of unlabeled rows from that of labeled ones


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass on one rank.

    `filler` marks a batch whose row counts nothing: in a ragged last step a rank may have no row left, but must take
    part in the collective operations all the same. `unlabeled` are rows of the unlabeled set, the same number for each
    of `rows`, in their order: with two for each, rows[1] has unlabeled[2:4].
    """

    rows: tuple[int, ...]
    filler: bool = False
    unlabeled: tuple[int, ...] = ()

    def split(self, number: int) -> list[MicroBatch]:
        """Return the rows in up to `number` forward passes of about the same size."""
        each = len(self.unlabeled) // len(self.rows)
        places = np.array_split(np.arange(len(self.rows)), min(number, len(self.rows)))
        bounds = [(int(place[0]), int(place[-1]) + 1) for place in places]
        return [
            MicroBatch(self.rows[first:end], self.filler, self.unlabeled[first * each : end * each])
            for first, end in bounds
        ]


@dataclass(frozen=True)
class StepBatch:
    """The rows of one optimizer step: `micro_batches[rank]` is what that rank goes through, the same number on each."""

    micro_batches: tuple[tuple[MicroBatch, ...], ...]

    def rows(self) -> list[int]:
        """All labeled rows of the step, over all ranks."""
        return [row for rank in self.micro_batches for batch in rank if not batch.filler for row in batch.rows]

    def of(self, rows: np.ndarray) -> StepBatch:
        """Return the step with the labeled rows `rows[index]` where this one has `index`."""
        return StepBatch(
            tuple(
                tuple(replace(batch, rows=tuple(int(row) for row in rows[list(batch.rows)])) for batch in rank)
                for rank in self.micro_batches
            )
        )

    def with_unlabeled(self, rows: np.ndarray) -> StepBatch:
        """Return the step with unlabeled rows, too; which labeled row gets which does not depend on how it is cut.

        Args:
            rows: int64 [labeled rows, rows for each], in the order in which labeled rows were dealt to the passes.
        """
        filled = [list(rank) for rank in self.micro_batches]
        start = 0
        for place in range(len(filled[0])):
            for rank in filled:
                count = len(rank[place].rows)
                first = 0 if rank[place].filler else start
                mine = tuple(int(row) for row in rows[first : first + count].flatten())
                rank[place] = replace(rank[place], unlabeled=mine)
                start += 0 if rank[place].filler else count
        return StepBatch(tuple(map(tuple, filled)))


def unlabeled_order(num_rows: int, start: int, count: int, seed: int) -> np.ndarray:
    """Return the rows at places `start` to `start + count` of endless passes over an unlabeled set, int64 [count].

    Each pass has an order of its own, so that no row comes again before all others have come.
    """
    passes, places = np.divmod(np.arange(start, start + count), num_rows)
    found = np.empty(count, dtype=np.int64)
    for number in np.unique(passes):
        order = np.random.default_rng([seed, UNLABELED, int(number)]).permutation(num_rows)
        found[passes == number] = order[places[passes == number]]
    return found


def plan_epoch(
    lengths: np.ndarray,
    *,
    batch_size: int,
    accumulation: int = 1,
    world_size: int = 1,
    seed: int,
    epoch: int,
    group_by_length: bool = True,
) -> list[StepBatch]:
    """Lay out one epoch.

    Args:
        lengths: int array [rows], the cost of each row (tokens, frames; all 1 where rows cost the same).
        batch_size: rows per rank and forward pass.
        accumulation: forward passes per optimizer step and rank.
        world_size: number of ranks.
        seed, epoch: what the order is a function of.
        group_by_length: sort by length inside large random groups, so that rows of one step are about as long.

    Returns:
        Every row exactly once; only the last step may be smaller than batch_size x accumulation x world_size.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    size = batch_size * accumulation * world_size
    if group_by_length:
        bucket = size * STEPS_PER_BUCKET
        order = np.concatenate(
            [_sorted_by_length(order[start : start + bucket], lengths) for start in range(0, len(order), bucket)]
            or [order]
        )
    steps = [order[start : start + size] for start in range(0, len(order), size)]
    if group_by_length and len(steps) > 1:
        ragged = [steps.pop()] if len(steps[-1]) < size else []
        steps = [steps[index] for index in generator.permutation(len(steps))] + ragged
    return [_deal(_sorted_by_length(rows, lengths), batch_size, world_size) for rows in steps]


def _sorted_by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _deal(rows: np.ndarray, batch_size: int, world_size: int) -> StepBatch:
    """Cut the rows of a step into forward passes, the same number for each rank; neighbours in length share one."""
    per_rank = -(-len(rows) // (batch_size * world_size))
    # As even as can be: 17 rows in 2 passes are 9 and 8, not 16 and 1.
    pieces = [tuple(int(row) for row in piece) for piece in np.array_split(rows, per_rank * world_size)]
    batches = [MicroBatch(piece) if piece else MicroBatch((int(rows[0]),), filler=True) for piece in pieces]
    return StepBatch(tuple(tuple(batches[rank::world_size]) for rank in range(world_size)))


def plan_evaluation(
    lengths: np.ndarray, *, batch_size: int, world_size: int = 1, positions: int | None = None
) -> list[list[list[int]]]:
    """Lay out one pass of evaluation: `plan[rank]` is a list of batches of rows.

    Longest rows first, so that running out of memory shows at once; ranks may have different numbers of batches, since
    no row is ever given twice.

    Args:
        lengths: int array [rows], the cost of each row.
        batch_size: rows per batch.
        positions: rows x longest row of a batch instead (or one row): of short rows more than of long ones.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = batch_size if positions is None else max(1, positions // max(1, int(lengths[order[start]])))
        batches.append([int(row) for row in order[start : start + size]])
        start += size
    return [batches[rank::world_size] for rank in range(world_size)]
