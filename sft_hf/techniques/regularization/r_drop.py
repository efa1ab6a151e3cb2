"""R-Drop: penalize differences between two passes with different dropout."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sft_hf.techniques.base import Criterion, Loss, LossParts, Technique, TrainBatch
from sft_hf.techniques.regularization.settings import RDropSettings


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(p || q) + KL(q || p) = sum_k (p_k - q_k) (log p_k - log q_k), float32 [items].

    Args:
        first, second: float32 logits [items, classes] of p and of q.
    """
    log_p, log_q = torch.log_softmax(first.float(), dim=1), torch.log_softmax(second.float(), dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1)


def agreeing(first: Tensor, second: Tensor, criterion: Criterion, alpha: float) -> Tensor:
    """Return (L(first) + L(second)) / 2 + alpha/2 (KL(p || q) + KL(q || p)), float32 [items, classes].

    The divergence does not depend on the class, so it is added to the loss of each class.

    Args:
        first, second: float32 logits [items, classes] of the two passes.
        criterion: L.
        alpha: strength.

    Source: X. Liang et al., R-Drop: Regularized Dropout for Neural Networks, 2021, equation 4; with the mean of the two
    losses, as in the authors' code (the paper has their sum), so that the loss has its usual scale.
    """
    return (criterion(first) + criterion(second)) / 2 + alpha / 2 * divergence(first, second)[:, None]


class RDrop(Technique[RDropSettings]):
    """Run every row twice with different dropout, and penalize the divergence of the two predictions.

    For models with dropout, especially on small data sets. Without dropout both passes are the same and it has no
    effect: many image models and Whisper have none, and model.config_overrides turns it on. A step takes twice the time
    and memory.
    """

    paper = "X. Liang et al., R-Drop: Regularized Dropout for Neural Networks, 2021, equation 4"
    order = 10  # innermost: it runs the forward pass itself
    allows_frozen_features = True  # a single pass with each row twice

    def wrap_loss(self, loss: Loss, parts: LossParts) -> Loss:
        """See `agreeing`. Both passes run as one over doubled rows, so that batch norm is updated once."""
        alpha = self.settings.alpha
        if not alpha:
            return loss

        def twice(model: nn.Module, batch: TrainBatch) -> Tensor:
            doubled = {name: torch.cat([tensor, tensor]) for name, tensor in batch.inputs.items()}
            items = parts.task.items(model, doubled)
            first, second = items.logits.chunk(2)  # items are in row order, and both halves have the same items
            one = replace(
                items,
                logits=first,
                targets=items.targets.chunk(2)[0],
                rows=items.rows.chunk(2)[0],
                num_rows=items.num_rows // 2,
            )
            return one.row_losses(lambda logits: agreeing(logits, second, parts.criterion, alpha))

        return twice
