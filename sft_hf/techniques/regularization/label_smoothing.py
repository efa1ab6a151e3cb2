"""Label smoothing."""

from __future__ import annotations

from torch import Tensor

from sft_hf.techniques.base import Criterion, Technique
from sft_hf.techniques.regularization.settings import LabelSmoothingSettings


def smoothed(losses: Tensor, smoothing: float) -> Tensor:
    """Return (1 - e) L_c + e mean_k L_k for every class c: the loss against (1 - e) one-hot + e uniform.

    Args:
        losses: float32 [items, classes], the loss of each item for each class.
        smoothing: e.

    Source: C. Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7.
    """
    return (1 - smoothing) * losses + smoothing * losses.mean(dim=1, keepdim=True)


class LabelSmoothing(Technique[LabelSmoothingSettings]):
    """Spread part of each label over all classes, which reduces overconfidence and the effect of wrong labels."""

    paper = "C. Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7"
    order = 40
    allows_frozen_features = True

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """See `smoothed`."""
        return lambda logits: smoothed(criterion(logits), self.settings.smoothing)
