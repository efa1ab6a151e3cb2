"""Stochastic weight averaging: the mean, when weights are collected, the constant rate, what is saved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from moving_model import model_with_statistics, move
from safetensors.torch import load_file
from small_runs import briefly
from torch.optim.swa_utils import AveragedModel

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.regularization.settings import SwaSettings
from sft_hf.techniques.regularization.swa import Swa, is_collected, update_mean


def make(num_steps=8, steps_per_epoch=2, **settings):
    return Swa(SwaSettings(**settings), SimpleNamespace(num_steps=num_steps, steps_per_epoch=steps_per_epoch))


def test_the_mean_is_what_torch_averages_and_what_the_sum_says():
    model = model_with_statistics()
    theirs = AveragedModel(model, use_buffers=True)
    mean = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    seen = []
    for step in range(5):
        move(model, step)
        theirs.update_parameters(model)
        update_mean(mean, model.state_dict(), step)
        seen.append({name: tensor.double().clone() for name, tensor in model.state_dict().items()})
    for name, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(mean[name], tensor)
            expected = sum(weights[name] for weights in seen) / 5
            torch.testing.assert_close(mean[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert mean["1.num_batches_tracked"] == 5


def test_the_epochs_of_the_last_part_are_collected_and_the_last_step():
    steps = [step for step in range(1, 12) if is_collected(step, first=4, every=3, num_steps=11)]
    assert steps == [6, 9, 11]


def test_it_averages_the_ends_of_the_late_epochs_alone():
    model, technique = model_with_statistics(), make(fraction=0.5)  # 8 steps, 4 epochs: after 6 and 8
    technique.prepare_model(model)
    kept = []
    for step in range(1, 9):
        assert technique.evaluated_weights(model) == {} or step > 6
        move(model, step)
        technique.after_step(model, step)
        if step in (6, 8):
            kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for name, tensor in technique.evaluated_weights(model).items():
        expected = kept[1][name] if name.endswith("tracked") else (kept[0][name] + kept[1][name]) / 2
        torch.testing.assert_close(tensor, expected)
    other = make(fraction=0.5)
    other.prepare_model(model_with_statistics())
    other.load_state_dict(technique.state_dict())
    assert other.count == 2
    assert all(torch.equal(other.mean[name], tensor) for name, tensor in technique.mean.items())


def test_the_rate_is_constant_in_the_last_part():
    technique = make(fraction=0.25, learning_rate_factor=0.3)
    factor = technique.wrap_schedule(lambda step: 1 - step / 8)
    assert [factor(step) for step in range(8)] == [1 - step / 8 for step in range(6)] + [0.3, 0.3]


def test_the_mean_is_evaluated_and_saved(make_recipe):
    """Six steps; the weights after each are those of a run that stops there, and the last three are averaged."""
    short = {"train__per_device_train_batch_size": 16, "data__max_train_samples": 48, "eval__baseline": "none"}
    short |= {"eval__load_best_model_at_end": False, "train__max_steps": 6}
    swa = {"name": "swa", "fraction": 0.5, "every": 1, "learning_rate_factor": 1.0}
    options = {"optim__lr_scheduler_type": "constant", "optim__warmup_ratio": 0.0, "checkpoint__save_steps": 1}
    averaged = briefly(make_recipe(techniques=[swa], checkpoint__save_total_limit=9, **short, **options))
    saved = load_file(averaged.output_dir / "model" / "model.safetensors")
    folders = [averaged.output_dir / "checkpoints" / f"step-{step:06d}" for step in (4, 5, 6)]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, sum(one[name] for one in weights) / 3, rtol=1e-4, atol=1e-5)
    assert not torch.equal(saved["classifier.weight"], weights[-1]["classifier.weight"])


def test_what_it_refuses():
    with pytest.raises(RecipeError, match="swa needs `every` for a stream"):
        make(steps_per_epoch=None)


def test_it_does_not_go_with_a_moving_average(make_recipe):
    with pytest.raises(RecipeError, match="swa and ema both decide"):
        make_recipe(techniques=[{"name": "swa"}, {"name": "ema"}])
