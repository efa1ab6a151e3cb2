"""The batch plan: which rows go into which optimizer step, on which rank, in which order.

A whole epoch is planned before it starts, as a pure function of (row lengths, batch sizes, world size, seed, epoch).
Resuming slices the plan instead of iterating over skipped batches. The rows of an optimizer step depend only on the
effective batch size: 16 rows x 1, 4 x 4, 1 x 16 and two ranks of 8 have the same rows, and so the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

STEPS_PER_BUCKET = 50  # rows are sorted by length within groups of this many steps: little padding, still random
UNLABELED = 0x0FF1CE  # part of the seed, so that unlabeled rows are not shuffled like labeled ones


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass on one rank.

    `filler` marks a batch whose row has weight zero: in a smaller last step a rank may have no row left, but must still
    take part in the collective operations. `unlabeled` are rows of the unlabeled set, the same number for each of
    `rows`, in their order: with two per row, rows[1] has unlabeled[2:4].
    """

    rows: tuple[int, ...]
    filler: bool = False
    unlabeled: tuple[int, ...] = ()

    def split(self, number: int) -> list[MicroBatch]:
        """Split the rows into up to `number` forward passes of about the same size."""
        each = len(self.unlabeled) // len(self.rows)
        places = np.array_split(np.arange(len(self.rows)), min(number, len(self.rows)))
        bounds = [(int(place[0]), int(place[-1]) + 1) for place in places]
        return [
            MicroBatch(self.rows[first:end], self.filler, self.unlabeled[first * each : end * each])
            for first, end in bounds
        ]


@dataclass(frozen=True)
class StepBatch:
    """The rows of one optimizer step: `micro_batches[rank]` are the batches of that rank, the same number on each."""

    micro_batches: tuple[tuple[MicroBatch, ...], ...]

    def rows(self) -> list[int]:
        """All labeled rows of the step, over all ranks."""
        return [row for rank in self.micro_batches for batch in rank if not batch.filler for row in batch.rows]

    def of(self, rows: np.ndarray) -> StepBatch:
        """Return the step with each labeled row `index` replaced by `rows[index]`."""
        return StepBatch(
            tuple(
                tuple(replace(batch, rows=tuple(int(row) for row in rows[list(batch.rows)])) for batch in rank)
                for rank in self.micro_batches
            )
        )

    def with_unlabeled(self, rows: np.ndarray) -> StepBatch:
        """Return the step with unlabeled rows added, assigned to labeled rows independently of the batch size.

        Args:
            rows: int64 [labeled rows, unlabeled rows per labeled row], in the order of the labeled rows in the passes.
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
    """Return the rows at positions `start` to `start + count` of repeated passes over an unlabeled set, int64 [count].

    Each pass is a new permutation, so that no row is repeated before all others have been used.
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
    """Plan one epoch.

    Args:
        lengths: int array [rows], the cost of each row (tokens, frames; all 1 if rows cost the same).
        batch_size: rows per rank and forward pass.
        accumulation: forward passes per optimizer step and rank.
        world_size: number of ranks.
        seed, epoch: determine the order.
        group_by_length: sort by length inside large random groups, so that rows of one step have similar lengths.

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
    """Divide the rows of a step into forward passes of similar lengths, the same number for each rank."""
    per_rank = -(-len(rows) // (batch_size * world_size))
    # As even as possible: 17 rows in 2 passes are 9 and 8, not 16 and 1.
    pieces = [tuple(int(row) for row in piece) for piece in np.array_split(rows, per_rank * world_size)]
    batches = [MicroBatch(piece) if piece else MicroBatch((int(rows[0]),), filler=True) for piece in pieces]
    return StepBatch(tuple(tuple(batches[rank::world_size]) for rank in range(world_size)))


def plan_evaluation(
    lengths: np.ndarray, *, batch_size: int, world_size: int = 1, positions: int | None = None
) -> list[list[list[int]]]:
    """Plan one evaluation pass: `plan[rank]` is a list of batches of rows.

    Longest rows come first, so that running out of memory shows at once. Ranks may have different numbers of batches,
    since no row is repeated.

    Args:
        lengths: int array [rows], the cost of each row.
        batch_size: rows per batch.
        positions: limit rows x longest row of a batch instead (at least one row): batches of short rows are larger.
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
