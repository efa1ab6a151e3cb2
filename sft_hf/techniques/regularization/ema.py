"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sft_hf.models.freezing import trained_tensors
from sft_hf.techniques._averaging import move_towards
from sft_hf.techniques.base import Technique
from sft_hf.techniques.regularization.settings import EmaSettings


def decay_at(step: int, decay: float) -> float:
    """Return min(d, (1 + t) / (10 + t)), so that the average does not stay near the initial weights in the first steps.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))


def update(average: dict[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Set a <- d a + (1 - d) w in place; integers (batch norm's counts) are copied.

    Source: B. T. Polyak and A. B. Juditsky, Acceleration of stochastic approximation by averaging, 1992; with
    exponential weights as in A. Tarvainen and H. Valpola, Mean teachers are better role models, 2017, the update of the
    teacher's weights.
    """
    move_towards(average, weights, 1 - decay)


class Ema(Technique[EmaSettings]):
    """Evaluate and save a moving average of the weights instead of the last ones."""

    paper = "A. Tarvainen and H. Valpola, Mean teachers are better role models, 2017, update of the teacher's weights"
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Initialize the average with the initial weights."""
        self.average = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}

    def after_step(self, model: nn.Module, step: int) -> None:
        """See `update`."""
        update(self.average, trained_tensors(model), decay_at(step, self.settings.decay))

    def evaluated_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the average."""
        return self.average

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average."""
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the average."""
        for name, tensor in self.average.items():
            tensor.copy_(state[name])
