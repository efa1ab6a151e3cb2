"""Gradual unfreezing: train the head first, then one more layer at a time."""

from __future__ import annotations

from torch import nn

from sft_hf.models.freezing import set_trained
from sft_hf.models.layers import layer_depths, names_at
from sft_hf.techniques.base import Technique
from sft_hf.techniques.transfer.settings import GradualUnfreezingSettings


def groups_trained(step: int, groups: int, interval: float) -> int:
    """Return how many groups of layers, from the top, are trained in step `step` (0-based): one more per `interval`.

    Args:
        interval: steps per group, possibly fractional; 0: all are trained from the beginning.

    Source: J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.3.
    """
    return groups if interval <= 0 else min(groups, 1 + int(step / interval))


class GradualUnfreezing(Technique[GradualUnfreezingSettings]):
    """Train the head first, then one more layer at a time, from the top down.

    Gradients from a randomly initialized head then do not damage pretrained layers. Layers that are not trained yet run
    in evaluation mode (no dropout, fixed batch norm) without a backward pass. Embeddings or the stem come last; a model
    without a head (Whisper) starts with its top layers. Parts named in train.freeze are never unfrozen.
    """

    paper = "J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.3"
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Group the trainable parameters by depth; the optimizer is built over all of them."""
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.groups = names_at(layer_depths(model), trainable)
        self.trained: int | None = None

    def before_step(self, model: nn.Module, step: int) -> None:
        """Freeze the layers that are not trained yet, as a function of the step."""
        count = groups_trained(step, len(self.groups), self._interval())
        if count != self.trained:
            for place, names in enumerate(self.groups):
                set_trained(model, names, place < count)
            self.trained = count

    def _interval(self) -> float:
        if self.settings.epochs_per_layer is not None:
            assert self.context.steps_per_epoch is not None
            return self.settings.epochs_per_layer * self.context.steps_per_epoch
        return self.settings.fraction * self.context.num_steps / max(1, len(self.groups) - 1)
