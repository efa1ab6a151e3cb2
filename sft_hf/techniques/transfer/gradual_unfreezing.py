"""Gradual unfreezing: the head first, then one more layer at a time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.recipe.sections import TechniqueSettings
from sft_hf.models.freezing import set_trained
from sft_hf.models.layers import layer_depths, names_at
from sft_hf.techniques.base import Technique


def groups_trained(step: int, groups: int, interval: float) -> int:
    """Return how many groups of layers, from the top, are trained in step `step` (0-based): one more each `interval`.

    Args:
        interval: steps, not necessarily whole; 0: all are trained from the beginning.

    Source: J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.3.
    """
    return groups if interval <= 0 else min(groups, 1 + int(step / interval))


class GradualUnfreezingSettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["gradual_unfreezing"] = "gradual_unfreezing"
    fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Part of all steps after which everything is trained; layers join at equal intervals."
    )
    epochs_per_layer: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Instead of fraction: epochs until the next layer joins; the paper's is 1."
    )


class GradualUnfreezing(Technique[GradualUnfreezingSettings]):
    """Train the head first, then one more layer at a time, from the top down.

    The first gradients, which come through a head that knows nothing, then spoil no pretrained layer. What is not
    trained yet runs as in evaluation (no dropout; batch norm as it came) and needs no backward pass. Embeddings or stem
    come last; a model without a head (Whisper) begins with its top layers. What train.freeze names is never unfrozen.
    """

    Settings = GradualUnfreezingSettings
    paper = "J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.3"
    excluded = {"lp_ft": "both decide which layers are trained in a step; lp_ft is the same in two stages"}
    neutral = {"fraction": 0.0}
    keeps_prefix = True

    @classmethod
    def check(cls, settings: GradualUnfreezingSettings, recipe: Recipe) -> None:
        """See `Technique.check`."""
        if settings.epochs_per_layer and recipe.data.streaming:
            raise RecipeError(
                "techniques: gradual_unfreezing: epochs_per_layer: a stream has no known epochs; use fraction"
            )

    def prepare_model(self, model: nn.Module) -> None:
        """Sort what is to be trained at all; the optimizer is built over all of it."""
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.groups = names_at(layer_depths(model), trainable)
        self.trained: int | None = None

    def before_step(self, model: nn.Module, step: int) -> None:
        """Freeze what is not trained yet, as the step alone says."""
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
