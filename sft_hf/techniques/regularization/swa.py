"""Stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sft_hf.core.errors import RecipeError
from sft_hf.models.freezing import trained_tensors
from sft_hf.techniques._averaging import move_towards
from sft_hf.techniques.base import Context, Schedule, Technique
from sft_hf.techniques.regularization.settings import SwaSettings


def update_mean(mean: dict[str, Tensor], weights: Mapping[str, Tensor], count: int) -> None:
    """Set m <- (n m + w) / (n + 1) in place, for the mean m of `count` = n earlier weights.

    Integers (batch norm's counts) are copied.

    Source: P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, section 3.2.
    """
    move_towards(mean, weights, 1 / (count + 1))


def is_collected(step: int, first: int, every: int, num_steps: int) -> bool:
    """Return whether to collect the weights after `step`: after `first`, every `every` steps and after the last."""
    return step > first and (step % every == 0 or step == num_steps)


class Swa(Technique[SwaSettings]):
    """Stochastic weight averaging: evaluate and save the mean of the weights of several late epochs.

    In that part of training the learning rate is constant, so that the weights move around a flat region that contains
    their mean. Before the first weights are collected, the current ones are evaluated. Running statistics of batch norm
    are averaged like weights, not recomputed on the training rows as in the paper. Costs the memory of one more set of
    weights. Needs several epochs, or `every`.
    """

    paper = "P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, section 3.2"
    allows_frozen_features = True

    def __init__(self, settings: SwaSettings, context: Context) -> None:
        super().__init__(settings, context)
        every = settings.every or context.steps_per_epoch
        if every is None:
            raise RecipeError("techniques: swa needs `every` for a stream (data.streaming), whose epochs have no end")
        self.every = every
        self.first = round((1 - settings.fraction) * context.num_steps)

    def prepare_model(self, model: nn.Module) -> None:
        """Allocate the mean."""
        self.mean = {name: torch.zeros_like(tensor) for name, tensor in trained_tensors(model).items()}
        self.count = torch.zeros((), dtype=torch.int64)

    def wrap_schedule(self, schedule: Schedule) -> Schedule:
        """Return the recipe's schedule, with a constant rate during collection."""
        return lambda step: schedule(step) if step < self.first else self.settings.learning_rate_factor

    def after_step(self, model: nn.Module, step: int) -> None:
        """See `update_mean`."""
        if is_collected(step, self.first, self.every, self.context.num_steps):
            update_mean(self.mean, trained_tensors(model), int(self.count))
            self.count += 1

    def evaluated_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the mean, or nothing before the first weights are collected."""
        return self.mean if self.count else {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean and the number of weights collected."""
        return {"count": self.count, **{f"mean.{name}": tensor for name, tensor in self.mean.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the mean."""
        self.count.copy_(state["count"])
        for name, tensor in self.mean.items():
            tensor.copy_(state[f"mean.{name}"])
