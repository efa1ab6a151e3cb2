"""Sharpness-aware minimization (SAM), and its adaptive variant (ASAM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sft_hf.techniques.base import Technique
from sft_hf.techniques.regularization.settings import SamSettings

TINY = 1e-12


def perturbation(gradients: list[Tensor], weights: list[Tensor], rho: float, adaptive: bool) -> list[Tensor]:
    """Return the ascent step e within the neighborhood, one tensor per gradient.

    SAM: e = rho g / |g|_2. ASAM: e = rho T^2 g / |T g|_2 with T = |w|, which is invariant to scaling one layer up and
    the next one down.

    Source: P. Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, equation 2;
    J. Kwon et al., ASAM, 2021, the ascent step with elementwise T = |w| (without the eta that its code adds).
    """
    scaled = [g * w.abs() for g, w in zip(gradients, weights, strict=True)] if adaptive else gradients
    norm = torch.stack([g.float().norm() for g in scaled]).norm() + TINY
    if adaptive:
        scaled = [g * w.abs() for g, w in zip(scaled, weights, strict=True)]
    return [g * (rho / norm) for g in scaled]


class Sam(Technique[SamSettings]):
    """Sharpness-aware minimization: use the gradient at nearby weights with a higher loss. Steps cost twice as much."""

    paper = (
        "P. Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, equation 2; "
        "adaptive J. Kwon et al., ASAM, 2021, step of ascent"
    )
    allows_frozen_features = True

    def compute_gradients(self, model: nn.Module, compute: Callable[..., float]) -> float:
        """Add `perturbation` to the weights, compute the gradient there, and restore the weights."""
        loss = compute()
        moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter in moved]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        with torch.no_grad():
            steps = perturbation(gradients, before, self.settings.rho, self.settings.adaptive)
            for parameter, step in zip(moved, steps, strict=True):
                parameter.add_(step)
        try:
            compute(keep_statistics=False)
        finally:
            with torch.no_grad():
                for parameter, old in zip(moved, before, strict=True):
                    parameter.copy_(old)
        return loss
