"""L2-SP: stay near the starting point."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sft_hf.core.recipe.sections import TechniqueSettings
from sft_hf.models.freezing import backbone_names
from sft_hf.techniques.base import Technique


def pull(weights: Tensor, start: Tensor, strength: float) -> Tensor:
    """Return a (w - w0), the gradient of a/2 |w - w0|^2.

    Source: X. Li, Y. Grandvalet and F. Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks, 2018, the L2-SP penalty.
    """
    return strength * (weights - start)


class L2SpSettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["l2_sp"] = "l2_sp"
    alpha: Annotated[float, Field(ge=0)] = Field(0.01, description="How strongly weights are held where they began.")
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="The same towards zero, for the head, which began nowhere; optim.weight_decay does it as well."
    )


class L2Sp(Technique[L2SpSettings]):
    """Pull the pretrained weights back to where they began, instead of to zero."""

    Settings = L2SpSettings
    paper = (
        "X. Li, Y. Grandvalet and F. Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional "
        "Networks, 2018, L2-SP penalty"
    )
    order = 10
    excluded = {"peft": "adapters begin at zero, so that optim.weight_decay does the same"}
    neutral = {"alpha": 0.0, "beta": 0.0}
    keeps_prefix = True

    def prepare_model(self, model: nn.Module) -> None:
        """Remember the pretrained weights; a resumed run has loaded them anew by now."""
        backbone = set(backbone_names(model, whole=True))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in trained.items() if name in backbone}

    @torch.no_grad()
    def change_gradients(self, model: nn.Module) -> None:
        """Add `pull`."""
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            start = self.start.get(name)
            if start is not None:
                parameter.grad.add_(pull(parameter, start, self.settings.alpha))
            elif self.settings.beta:
                parameter.grad.add_(self.settings.beta * parameter)
