"""Focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

from sft_hf.techniques.base import Criterion, Technique
from sft_hf.techniques.labels.settings import FocalLossSettings

SMALLEST = 1e-8  # minimum of 1 - p (0 or larger than this in float32), since the power's slope at 0 may be infinite


def focal(losses: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p for every class, which down-weights examples that are already right.

    Args:
        losses: float32 [items, classes], -log p.
        gamma: strength; 0 is cross-entropy.

    Source: T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, equation 4.
    """
    missing = -torch.expm1(-losses)  # 1 - p
    return missing.clamp_min(SMALLEST) ** gamma * losses


class FocalLoss(Technique[FocalLossSettings]):
    """Down-weight examples that are already classified correctly.

    For many easy rows and few hard ones. In multi-label data, every label of a row is an example. class_weights adds
    the weights alpha of the paper's equation 5. Wrong labels get more weight too, and probabilities become less
    confident: check the calibration error. No extra time per step.
    """

    paper = "T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, equation 4"
    order = 10
    allows_frozen_features = True

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """See `focal`."""
        return lambda logits: focal(criterion(logits), self.settings.gamma)
