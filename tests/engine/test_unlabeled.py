"""Unlabeled rows in a step: which come when, and one technique that trains on them."""

from __future__ import annotations

import distributed_unlabeled
import numpy as np
import pytest
import torch
from distributed_gradients import relative_difference
from distributed_unlabeled import PER_ROW, Consistency, ConsistencySettings, step_gradients, with_consistency
from safetensors.torch import load_file
from two_processes import run_on_two_processes

from sft_hf.core.errors import RecipeError
from sft_hf.engine.batches import MicroBatch, plan_epoch, unlabeled_order
from sft_hf.engine.state import TrainState
from sft_hf.engine.step import cut, train_step
from sft_hf.techniques.base import TrainBatch

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def settings(batch_size, accumulation):
    """A learning rate of almost nothing: the second step meets the same weights as the first."""
    return {
        "train__per_device_train_batch_size": batch_size,
        "train__gradient_accumulation_steps": accumulation,
        "train__max_grad_norm": 0,
        "model__config_overrides": NO_DROPOUT,
        "optim__name": "sgd",
        "optim__learning_rate": 1e-30,
    }


def test_all_unlabeled_rows_come_before_one_comes_again():
    whole = unlabeled_order(7, 0, 21, seed=3)
    passes = whole.reshape(3, 7)
    assert all(sorted(rows) == list(range(7)) for rows in passes.tolist())
    assert len({tuple(rows) for rows in passes.tolist()}) == 3
    assert np.array_equal(unlabeled_order(7, 5, 9, seed=3), whole[5:14])  # a slice is what the whole has there
    assert not np.array_equal(unlabeled_order(7, 0, 21, seed=4), whole)


def pairs_of(step):
    """{labeled row: its unlabeled rows}, over all ranks and passes."""
    found = {}
    for batch in (batch for rank in step.micro_batches for batch in rank):
        each = len(batch.unlabeled) // len(batch.rows)
        for place, row in enumerate(batch.rows):
            mine = batch.unlabeled[place * each : (place + 1) * each]
            assert found.setdefault(row, mine) == mine  # a filler's row stands in a pass of its own as well
    return found


@pytest.mark.parametrize(("batch_size", "accumulation", "world_size"), [(4, 4, 1), (1, 16, 1), (8, 1, 2), (2, 2, 4)])
def test_a_labeled_row_has_the_same_unlabeled_rows_however_a_step_is_cut(batch_size, accumulation, world_size):
    lengths, order = np.arange(17) % 5 + 1, unlabeled_order(11, 0, 34, seed=0)
    options = {"seed": 0, "epoch": 0}
    whole = plan_epoch(lengths, batch_size=16, **options)
    pieces = plan_epoch(lengths, batch_size=batch_size, accumulation=accumulation, world_size=world_size, **options)
    start = 0
    for one, other in zip(whole, pieces, strict=True):
        rows = order[start : start + 2 * len(one.rows())].reshape(-1, 2)
        start += rows.size
        assert pairs_of(one.with_unlabeled(rows)) == pairs_of(other.with_unlabeled(rows))


def test_unlabeled_rows_stay_with_theirs_where_memory_is_short():
    batch = MicroBatch((5, 6, 7), False, (1, 2, 3, 4, 8, 9))
    assert cut((batch,), 1) == (MicroBatch((5, 6), False, (1, 2, 3, 4)), MicroBatch((7,), False, (8, 9)))


def test_a_batch_moves_with_its_unlabeled_rows():
    batch = TrainBatch({"x": torch.ones(1)}, unlabeled={"weak": {"x": torch.ones(2)}})
    assert batch.to(torch.device("meta")).unlabeled["weak"]["x"].is_meta
    assert batch.with_inputs({}).unlabeled is batch.unlabeled


def test_a_technique_needs_the_rows_that_it_needs(make_recipe):
    run = with_consistency(make_recipe(**settings(8, 1)))
    run.training.data.unlabeled = None
    with pytest.raises(RecipeError, match="consistency needs unlabeled rows"):
        run.training.techniques.use_data(run.training.data)


def test_a_step_trains_on_both_and_may_be_cut_in_any_way(make_recipe, tmp_path):
    whole = step_gradients(make_recipe(**settings(16, 1)))
    assert relative_difference(step_gradients(make_recipe(**settings(4, 4))), whole) < 1e-5
    split = with_consistency(make_recipe(**settings(16, 1)))
    examples, plan = split.training.data.epoch(0)
    Consistency.seen.clear()
    split.training.model.train()
    train_step(split.training, examples, plan[0], TrainState(oom_splits=2))
    assert [len(rows) for rows in Consistency.seen] == [4 * PER_ROW] * 4
    gradients = {f"first.{name}": value.grad for name, value in split.training.model.named_parameters()}
    first = {name: value for name, value in whole.items() if name.startswith("first.")}
    assert relative_difference(gradients, first) < 1e-5
    split.training.techniques.techniques.clear()
    train_step(split.training, examples, plan[0], TrainState())
    without = {f"first.{name}": value.grad for name, value in split.training.model.named_parameters()}
    assert relative_difference(without, first) > 1e-2, "the unlabeled rows change the gradient"


@pytest.mark.long
def test_two_processes_have_the_gradient_of_one(make_recipe, tmp_path):
    whole = step_gradients(make_recipe(**settings(16, 1)))
    recipe = tmp_path / "two.yaml"
    recipe.write_text(make_recipe(**settings(4, 2), output_dir=str(tmp_path / "two")).to_yaml())
    run_on_two_processes(distributed_unlabeled.__file__, recipe, tmp_path / "gradients")
    for rank in range(2):
        assert relative_difference(load_file(tmp_path / f"gradients.rank{rank}"), whole) < 1e-5


def test_the_settings_say_so():
    assert ConsistencySettings.needs_unlabeled and not Consistency.allows_frozen_features
