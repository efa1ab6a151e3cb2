"""Run by test_loop.py under torchrun: writes the gradients of the first and of the ragged last window.

usage: distributed_gradients.py RECIPE OUTPUT
"""

from __future__ import annotations

import sys
from typing import Any

from safetensors.torch import save_file

from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.engine.state import TrainState
from sft_hf.engine.step import train_step
from sft_hf.jobs.job import TrainingJob


def window_gradients(recipe: Recipe) -> tuple[dict[str, Any], int]:
    """Gradients by "<window>.<parameter>", and the number of processes."""
    run = TrainingJob(recipe)
    run.prepare()
    examples, plan = run.training.data.epoch(0)
    assert len(plan[-1].rows()) < len(plan[0].rows()), "the last window is to be ragged"
    run.training.model.train()
    gradients = {}
    for name, window in (("first", plan[0]), ("last", plan[-1])):
        train_step(run.training, examples, window, TrainState())
        for parameter, value in run.accelerator.unwrap_model(run.training.model).named_parameters():
            if value.grad is not None:  # a frozen one has none
                gradients[f"{name}.{parameter}"] = value.grad.detach().clone()
    return gradients, run.accelerator.num_processes


def relative_difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The norm of the difference of two sets of tensors, as a part of the right one's norm."""
    assert left.keys() == right.keys()
    difference = sum(float((left[name] - right[name]).double().square().sum()) for name in left) ** 0.5
    return difference / sum(float(right[name].double().square().sum()) for name in right) ** 0.5


if __name__ == "__main__":
    found, processes = window_gradients(load_recipe(sys.argv[1]))
    assert processes == 2, processes
    save_file(found, sys.argv[2] + f".rank{__import__('os').environ['RANK']}")
