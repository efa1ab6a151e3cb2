"""L2-SP: penalize the distance from the pretrained weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sft_hf.models.freezing import backbone_names
from sft_hf.techniques.base import Technique
from sft_hf.techniques.transfer.settings import L2SpSettings


def pull(weights: Tensor, start: Tensor, strength: float) -> Tensor:
    """Return a (w - w0), the gradient of a/2 |w - w0|^2.

    Source: X. Li, Y. Grandvalet and F. Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks, 2018, the L2-SP penalty.
    """
    return strength * (weights - start)


class L2Sp(Technique[L2SpSettings]):
    """Decay the weights toward their pretrained values instead of toward zero."""

    paper = (
        "X. Li, Y. Grandvalet and F. Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional "
        "Networks, 2018, L2-SP penalty"
    )
    order = 10
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Store the pretrained weights, which a resumed run has loaded again at this point."""
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
