"""The batch plan: which rows meet in which optimizer step, on which rank, in which order.

A whole epoch is laid out before it starts, as a pure function of (row lengths, batch sizes, world size, seed, epoch).
Resuming slices the plan; nothing is skipped through. What an optimizer step sees, a *window* of rows, depends only on
the effective batch size: 16 rows x 1, 4 x 4, 1 x 16 and two ranks of 8 hold the same rows: the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

WINDOWS_PER_BUCKET = 50  # rows are sorted by length inside groups of so many windows: little padding, still random


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass on one rank.

    `filler` marks a batch whose row counts nothing: in a ragged last window a rank may have no row left, but must take
    part in the collective operations all the same.
    """

    rows: tuple[int, ...]
    filler: bool = False


@dataclass(frozen=True)
class Window:
    """The rows of one optimizer step: `micro_batches[rank]` is what that rank goes through, the same number on each."""

    micro_batches: tuple[tuple[MicroBatch, ...], ...]

    def rows(self) -> list[int]:
        """All real rows of the window, over all ranks."""
        return [row for rank in self.micro_batches for batch in rank if not batch.filler for row in batch.rows]

    def of(self, rows: np.ndarray) -> Window:
        """Return the window of `rows[index]` where this one has `index`."""
        return Window(
            tuple(
                tuple(replace(batch, rows=tuple(int(row) for row in rows[list(batch.rows)])) for batch in rank)
                for rank in self.micro_batches
            )
        )


def plan_epoch(
    lengths: np.ndarray,
    *,
    batch_size: int,
    accumulation: int = 1,
    world_size: int = 1,
    seed: int,
    epoch: int,
    group_by_length: bool = True,
) -> list[Window]:
    """Lay out one epoch.

    Args:
        lengths: int array [rows], the cost of each row (tokens, frames; all 1 where rows cost the same).
        batch_size: rows per rank and forward pass.
        accumulation: forward passes per optimizer step and rank.
        world_size: number of ranks.
        seed, epoch: what the order is a function of.
        group_by_length: sort by length inside large random groups, so that rows of one window are about as long.

    Returns:
        Every row exactly once; only the last window may be smaller than batch_size x accumulation x world_size.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    size = batch_size * accumulation * world_size
    if group_by_length:
        bucket = size * WINDOWS_PER_BUCKET
        order = np.concatenate(
            [_sorted_by_length(order[start : start + bucket], lengths) for start in range(0, len(order), bucket)]
            or [order]
        )
    windows = [order[start : start + size] for start in range(0, len(order), size)]
    if group_by_length and len(windows) > 1:
        ragged = [windows.pop()] if len(windows[-1]) < size else []
        windows = [windows[index] for index in generator.permutation(len(windows))] + ragged
    return [_deal(_sorted_by_length(rows, lengths), batch_size, world_size) for rows in windows]


def _sorted_by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _deal(rows: np.ndarray, batch_size: int, world_size: int) -> Window:
    """Cut a window into forward passes: neighbours in length share one, and every rank gets the same number."""
    per_rank = -(-len(rows) // (batch_size * world_size))
    # As even as can be: 17 rows in 2 passes are 9 and 8, not 16 and 1.
    pieces = [tuple(int(row) for row in piece) for piece in np.array_split(rows, per_rank * world_size)]
    batches = [MicroBatch(piece) if piece else MicroBatch((int(rows[0]),), filler=True) for piece in pieces]
    return Window(tuple(tuple(batches[rank::world_size]) for rank in range(world_size)))


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
