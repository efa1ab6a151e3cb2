"""Logit adjustment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sft_hf.techniques.base import Context, Criterion, Technique
from sft_hf.techniques.labels.settings import LogitAdjustmentSettings


def log_prior(counts: Sequence[int]) -> Tensor:
    """Return the logarithm of each label's share of the rows, float32 [labels].

    A label without rows is treated as if it had one: the logarithm of zero would make the loss of every mixed or
    smoothed label infinite.
    """
    seen = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    return (seen / seen.sum()).log().float()


def adjusted(logits: Tensor, prior: Tensor, tau: float) -> Tensor:
    """Return f_y + tau log pi_y, used for the loss only; predictions use f.

    Args:
        logits: float32 [items, classes], f.
        prior: float32 [classes], log pi.
        tau: strength.

    Source: A. K. Menon et al., Long-tail Learning via Logit Adjustment, 2021, equation 10.
    """
    return logits + tau * prior


class LogitAdjustment(Technique[LogitAdjustmentSettings]):
    """Add label frequencies to the logits in training, so that predictions do not favor frequent labels.

    For imbalanced labels that are equally important (macro-F1, balanced accuracy): the model predicts as if all labels
    were equally frequent, so plain accuracy on imbalanced data may fall, and the evaluation loss, which is not
    adjusted, rises. No extra time per step.
    """

    paper = "A. K. Menon et al., Long-tail Learning via Logit Adjustment, 2021, equation 10"
    order = 80  # outermost, so that other criteria use the probabilities of the adjusted logits
    allows_frozen_features = True

    def __init__(self, settings: LogitAdjustmentSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.prior = log_prior(context.label_counts or ())

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """See `adjusted`."""
        return lambda logits: criterion(adjusted(logits, self.prior.to(logits.device), self.settings.tau))
