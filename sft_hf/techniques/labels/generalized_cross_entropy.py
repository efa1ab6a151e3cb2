"""Generalized cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from sft_hf.techniques.base import Criterion, Technique
from sft_hf.techniques.labels.settings import GeneralizedCrossEntropySettings


def generalized(losses: Tensor, q: float) -> Tensor:
    """Return (1 - p^q) / q for every class, which is bounded, so that wrong labels have limited influence.

    Args:
        losses: float32 [items, classes], -log p.
        q: from 0 (cross-entropy, the limit) to 1 (half the mean absolute error).

    Source: Z. Zhang and M. R. Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels, 2018, equation 6.
    """
    return losses if q == 0 else -torch.expm1(-q * losses) / q


class GeneralizedCrossEntropy(Technique[GeneralizedCrossEntropySettings]):
    """Bound the loss of each example, so that wrong labels are not memorized.

    For data with many wrong labels. Rows that the model considers very unlikely have little influence, whether they are
    mislabeled or hard: with correct labels, or with many classes, plain cross-entropy learns more. Training from a
    random head starts slowly; a smaller q helps. No extra time per step.
    """

    paper = (
        "Z. Zhang and M. R. Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy "
        "Labels, 2018, equation 6"
    )
    order = 10
    allows_frozen_features = True

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """See `generalized`."""
        return lambda logits: generalized(criterion(logits), self.settings.q)
