"""The store of cached rows: what comes back, what makes room, and how rows are stacked."""

from __future__ import annotations

import os

import pytest
import torch

from sft_hf.data.row_store import RowStore
from sft_hf.engine.frozen_features.replay import stack_like
from sft_hf.engine.frozen_features.trace import Declined


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_they_went(dtype):
    rows = (
        {f"{number:064x}": [torch.arange(6).view(2, 3).to(dtype) + number] for number in range(3)}
        if (dtype != torch.bool)
        else {f"{number:064x}": [torch.tensor([True, False])] for number in range(3)}
    )
    store = RowStore("frozen-features", "key", 10**6)
    for name, tensors in rows.items():
        store.add(name, tensors)
    store.flush()
    again = RowStore("frozen-features", "key", 10**6)
    again.open()
    for name, tensors in rows.items():
        (found,) = again.read(name)
        assert found.dtype == dtype and torch.equal(found, tensors[0])
    assert "f" * 64 not in again


def test_shards_that_were_not_used_for_longest_make_room(cache):
    for age, key in enumerate(("new", "old", "older")):
        store = RowStore("frozen-features", key, 10**6)
        store.add("0" * 64, [torch.zeros(1000)])
        store.flush()
        (shard,) = (cache / key).iterdir()
        os.utime(shard, (10**9 - age, 10**9 - age))
    own = RowStore("frozen-features", "older", 10_500)  # three shards of about 4.2 kB
    own.open()
    own.make_room(1000)
    assert {path.parent.name for path in cache.glob("*/*")} == {"new", "older"}  # what is open stays
    own.make_room(9000)
    assert {path.parent.name for path in cache.glob("*/*")} == {"older"}


def test_rows_are_filled_up_with_zeros_and_never_cut():
    rows = [torch.ones(2, 3), torch.ones(1, 3)]
    filled = stack_like(rows, torch.full((2, 4, 3), float("nan")))
    assert filled.tolist() == [[[1.0] * 3] * 2 + [[0.0] * 3] * 2, [[1.0] * 3] + [[0.0] * 3] * 3]
    with pytest.raises(Declined):
        stack_like(rows, torch.zeros(2, 1, 3))
    with pytest.raises(Declined):
        stack_like(rows, torch.zeros(1, 4, 3))
