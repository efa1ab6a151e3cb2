"""Bootstrapping: labels are mixed with the model's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from sft_hf.techniques.base import Criterion, Technique
from sft_hf.techniques.labels.settings import BootstrappingSettings


def soft(losses: Tensor, beta: float) -> Tensor:
    """Return b L_c + (1 - b) sum_k p_k L_k for every class c: the loss against b one-hot + (1 - b) p.

    The gradient also flows through p as a target, as in the paper: the second term is the entropy of the prediction,
    which is minimized.

    Args:
        losses: float32 [items, classes], L = -log p.
        beta: b, the weight of the label.

    Source: S. Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015, soft bootstrapping.
    """
    return beta * losses + (1 - beta) * (torch.exp(-losses) * losses).sum(dim=1, keepdim=True)


def hard(losses: Tensor, beta: float) -> Tensor:
    """Return b L_c + (1 - b) min_k L_k for every class c: the loss against b one-hot + (1 - b) the likeliest class.

    Args and source: see `soft`; hard bootstrapping.
    """
    return beta * losses + (1 - beta) * losses.amin(dim=1, keepdim=True)


class Bootstrapping(Technique[BootstrappingSettings]):
    """Mix each label with the model's own prediction.

    For data with some wrong labels: once the model is confident of another label, the given one has less influence.
    Early predictions are unreliable, so it needs a good pretrained model. No extra time per step.
    """

    paper = (
        "S. Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2015, soft and hard "
        "bootstrapping"
    )
    order = 10
    allows_frozen_features = True

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """See `soft` and `hard`."""
        believed = soft if self.settings.mode == "soft" else hard
        return lambda logits: believed(criterion(logits), self.settings.beta)
