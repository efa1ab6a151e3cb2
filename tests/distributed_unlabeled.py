"""A technique that trains on unlabeled rows, and the gradient of a step with it.

Run by test_unlabeled.py under torchrun: writes the gradients of the first and of the ragged last step.

usage: distributed_unlabeled.py RECIPE OUTPUT
"""

from __future__ import annotations

import os
import sys
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from small_runs import prepared

from sft_hf.core.recipe.component_settings import TechniqueSettings
from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.data.examples import Examples
from sft_hf.engine.epochs import Unlabeled
from sft_hf.engine.state import TrainState
from sft_hf.engine.step import train_step
from sft_hf.techniques.base import Technique

PER_ROW = 2


class ConsistencySettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["consistency"] = "consistency"
    needs_unlabeled = True


class Consistency(Technique[ConsistencySettings]):
    """The student is to answer unlabeled rows as a teacher does, here the model as it came but for a shift."""

    unlabeled_views = ("train", "weak")
    seen: list[Any] = []  # noqa: RUF012

    def prepare_model(self, model):
        self.teacher = deepcopy(model).eval()

    def wrap_loss(self, loss, parts):
        def consistent(model, batch):
            student, weak = batch.unlabeled["train"], batch.unlabeled["weak"]
            self.seen.append(sorted(map(str, student["input_ids"].tolist())))
            with torch.no_grad():
                target = torch.softmax(self.teacher(**weak).logits + torch.tensor([1.0, -1.0, 0.0]), dim=1)
            difference = (torch.softmax(model(**student).logits, dim=1) - target).square().sum(dim=1)
            rows = len(batch.inputs["labels"])
            return loss(model, batch) + difference.view(rows, -1).mean(dim=1)

        return consistent


def with_consistency(recipe: Recipe) -> Any:
    """A run before its first step, with every second of its training rows as unlabeled ones, too."""
    run = prepared(recipe)
    training, examples = run.training, run.training.data.examples
    rows = np.arange(0, len(examples), 2)
    bare = [{key: value for key, value in examples.features[row].items() if key != "labels"} for row in rows.tolist()]
    unlabeled = Examples(bare, examples.lengths[rows], examples.row_ids[rows], [None] * len(rows))
    training.data.unlabeled = Unlabeled(unlabeled, PER_ROW)
    technique = Consistency(ConsistencySettings(), training.techniques.context)
    technique.prepare_model(training.model)
    training.techniques.techniques.append(technique)
    training.techniques.use_data(training.data)
    return run


def step_gradients(recipe: Recipe) -> dict[str, Any]:
    """Gradients by "<step>.<parameter>"."""
    run = with_consistency(recipe)
    examples, plan = run.training.data.epoch(0)
    assert len(plan[-1].rows()) < len(plan[0].rows()), "the last step is to be ragged"
    run.training.model.train()
    gradients = {}
    for name, step in (("first", plan[0]), ("last", plan[-1])):
        train_step(run.training, examples, step, TrainState())
        for parameter, value in run.training.accelerator.unwrap_model(run.training.model).named_parameters():
            gradients[f"{name}.{parameter}"] = value.grad.detach().clone()
    return gradients


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    save_file(step_gradients(load_recipe(sys.argv[1])), f"{sys.argv[2]}.rank{os.environ['RANK']}")
