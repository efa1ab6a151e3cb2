"""LP-FT: linear probing, then full fine-tuning."""

from __future__ import annotations

import logging

from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.models.freezing import head_names, set_trained
from sft_hf.models.head_rate import with_head_scale
from sft_hf.techniques.base import Schedule, Technique
from sft_hf.techniques.transfer.settings import LpFtSettings

log = logging.getLogger("sft_hf")


def two_stages(rest: Schedule, probe_steps: int, probe_factor: float) -> Schedule:
    """Return a schedule that is constant for `probe_steps`, followed by `rest` from its step 0.

    Source: A. Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, 2022,
    section 3.4.
    """
    return lambda step: probe_factor if step < probe_steps else rest(step - probe_steps)


class LpFt(Technique[LpFtSettings]):
    """Train only the head first, then the whole model, so that pretrained features are distorted less.

    Full fine-tuning from a random head adapts the features to that head, which hurts predictions on data that differ
    from the training rows. In the first stage the backbone runs in evaluation mode without a backward pass. The
    optimizer state of the head is kept for the second stage. train.freeze: [backbone] is a linear probe without the
    second stage.
    """

    paper = (
        "A. Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, 2022, "
        "section 3.4"
    )
    order = 5  # innermost: it replaces the recipe's schedule, which others wrap
    allows_frozen_features = True

    @property
    def probe_steps(self) -> int:
        """The number of steps of the first stage; at least one is left for the second.

        It is 0 if no backbone is trained: the whole run is a linear probe.
        """
        if not self.backbone:
            return 0
        return min(round(self.settings.probe_fraction * self.context.num_steps), self.context.num_steps - 1)

    def prepare_model(self, model: nn.Module) -> None:
        """Separate head and backbone. Raises RecipeError if the head is frozen."""
        head = set(head_names(model))
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.backbone = [name for name in trainable if name not in head]
        if len(self.backbone) == len(trainable):
            raise RecipeError(
                "techniques: lp_ft: there is nothing to train in the head, for the first stage (train.freeze)"
            )
        if not self.backbone:
            log.info("lp_ft has no effect: only the head is trained")
        self.probing: bool | None = None
        self.head_scale = max(with_head_scale(model, self.context.recipe.optim, {}).values(), default=1.0)

    def wrap_schedule(self, schedule: Schedule) -> Schedule:
        """See `two_stages`."""
        if not self.probe_steps:
            return schedule
        rest = self.context.schedule(self.context.num_steps - self.probe_steps)
        factor = self.settings.probe_learning_rate / (self.context.recipe.optim.learning_rate * self.head_scale)
        return two_stages(rest, self.probe_steps, factor)

    def before_step(self, model: nn.Module, step: int) -> None:
        """Freeze or unfreeze the backbone, as a function of the step."""
        probing = step < self.probe_steps
        if probing != self.probing:
            set_trained(model, self.backbone, not probing)
            self.probing = probing
