"""The batch plan: every row once, the same windows however they are cut, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from sft_hf.data.examples import padding_waste
from sft_hf.engine.batches import plan_epoch, plan_evaluation


def plan(lengths, batch_size=4, accumulation=1, world_size=1, seed=0, epoch=0, **options):
    return plan_epoch(
        np.asarray(lengths),
        batch_size=batch_size,
        accumulation=accumulation,
        world_size=world_size,
        seed=seed,
        epoch=epoch,
        **options,
    )


LENGTHS = np.random.default_rng(1).integers(1, 200, size=333)


@pytest.mark.parametrize("rows", [1, 3, 15, 16, 17, 333])
@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world_size"), [(16, 1, 1), (4, 4, 1), (1, 16, 1), (4, 2, 2), (1, 1, 3)]
)
@pytest.mark.parametrize("group_by_length", [True, False])
def test_every_row_once_and_every_rank_as_many_passes(rows, batch_size, accumulation, world_size, group_by_length):
    windows = plan(LENGTHS[:rows], batch_size, accumulation, world_size, group_by_length=group_by_length)
    assert sorted(row for window in windows for row in window.rows()) == list(range(rows))
    full = batch_size * accumulation * world_size
    assert all(len(window.rows()) == full for window in windows[:-1])
    for window in windows:
        assert len(window.micro_batches) == world_size
        assert len({len(rank) for rank in window.micro_batches}) == 1
        assert all(1 <= len(micro.rows) <= batch_size for rank in window.micro_batches for micro in rank)


@pytest.mark.parametrize("group_by_length", [True, False])
def test_windows_do_not_depend_on_how_they_are_cut(group_by_length):
    cuts = [(16, 1, 1), (4, 4, 1), (1, 16, 1), (8, 1, 2), (2, 4, 2)]
    plans = [[sorted(w.rows()) for w in plan(LENGTHS, *cut, group_by_length=group_by_length)] for cut in cuts]
    assert all(other == plans[0] for other in plans[1:])


def test_the_order_is_a_function_of_seed_and_epoch():
    assert plan(LENGTHS, seed=1, epoch=2) == plan(LENGTHS, seed=1, epoch=2)
    assert plan(LENGTHS, seed=1, epoch=2) != plan(LENGTHS, seed=1, epoch=3)
    assert plan(LENGTHS, seed=1, epoch=2) != plan(LENGTHS, seed=2, epoch=2)


def test_a_rank_without_rows_gets_a_filler():
    (window,) = plan([5, 6], batch_size=1, world_size=3)
    fillers = [micro for rank in window.micro_batches for micro in rank if micro.filler]
    assert len(fillers) == 1
    assert len(window.rows()) == 2


def test_length_groups_waste_less_padding():
    def waste(group_by_length):
        batches = [
            micro.rows
            for window in plan(LENGTHS, 16, group_by_length=group_by_length)
            for rank in window.micro_batches
            for micro in rank
        ]
        return padding_waste(LENGTHS, batches)

    assert waste(True) < 0.1 < 0.3 < waste(False)


def test_padding_waste_by_hand():
    assert padding_waste(np.array([2, 4, 4]), [(0, 1), (2,)]) == pytest.approx(1 - 10 / 12)
    assert padding_waste(np.array([]), []) == 0.0


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_takes_every_row_once_longest_first(world_size):
    ranks = plan_evaluation(LENGTHS[:10], batch_size=4, world_size=world_size)
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(row for batch in batches for row in batch) == list(range(10))
    assert max(LENGTHS[:10]) == LENGTHS[ranks[0][0][0]]


@pytest.mark.parametrize("positions", [1, 40, 500])
@pytest.mark.parametrize("world_size", [1, 2])
def test_short_rows_share_larger_batches(positions, world_size):
    ranks = plan_evaluation(LENGTHS, batch_size=4, world_size=world_size, positions=positions)
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert all(len(batch) == 1 or len(batch) * LENGTHS[batch].max() <= positions for batch in batches)
    one = plan_evaluation(LENGTHS, batch_size=4, positions=positions)[0]
    assert [ranks[index % world_size][index // world_size] for index in range(len(one))] == one
    longest = [LENGTHS[batch].max() for batch in one]
    assert longest == sorted(longest, reverse=True)
