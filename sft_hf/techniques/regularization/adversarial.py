"""Adversarial training on perturbed inputs: images, spectrograms, token embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sft_hf.techniques.base import Loss, LossParts, Technique, TrainBatch
from sft_hf.techniques.regularization.settings import AdversarialSettings

TINY = 1e-12


def perturbation(gradients: Tensor, epsilon: float) -> Tensor:
    """Return r = epsilon g / |g|_2 for each row, the step of that length that increases its loss fastest.

    A row with zero gradient is not perturbed.

    Args:
        gradients: float [rows, ...], of each row's loss with respect to its inputs.
        epsilon: |r|_2, in the units of the inputs.

    Source: T. Miyato, A. M. Dai and I. Goodfellow, Adversarial Training Methods for Semi-Supervised Text
    Classification, 2017, equation 5 (with the gradient of the log-likelihood, hence a minus, and with normalized word
    embeddings).
    """
    norms = gradients.float().flatten(1).norm(dim=1).clamp(min=TINY)
    scale = (epsilon / norms).view(-1, *[1] * (gradients.ndim - 1))
    return (gradients * scale).to(gradients.dtype)


class Adversarial(Technique[AdversarialSettings]):
    """Add the loss of inputs perturbed in the direction that increases the loss most.

    For texts, token embeddings are perturbed (fast gradient method). Most useful with few rows. A step costs two
    forward and three backward passes.
    """

    paper = (
        "T. Miyato, A. M. Dai and I. Goodfellow, Adversarial Training Methods for Semi-Supervised Text Classification, "
        "2017, section 3, equation 5"
    )
    order = 80

    def wrap_loss(self, loss: Loss, parts: LossParts) -> Loss:
        """Return (1 - w) L(x) + w L(x + r), without a gradient through r."""
        weight = self.settings.weight

        def adversarial(model: nn.Module, batch: TrainBatch) -> Tensor:
            name, inputs = parts.task.as_embeddings(model, batch.inputs)
            values = inputs[name]
            if not values.requires_grad:  # images, spectrograms, frozen embeddings
                values = values.detach().requires_grad_()
            plain = loss(model, batch.with_inputs({**inputs, name: values}))
            (gradients,) = torch.autograd.grad(plain.sum(), values, retain_graph=True)  # not into the parameters
            moved = values + perturbation(gradients, self.settings.epsilon)
            with _statistics_kept(model):
                worst = loss(model, batch.with_inputs({**inputs, name: moved}))
            return (1 - weight) * plain + weight * worst

        return adversarial


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep batch norm's running statistics of the plain inputs, which are what evaluation sees."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    before = [dict(norm._buffers) for norm in norms]
    for norm in norms:  # replace the buffers instead of their values, which the backward pass may need
        norm._buffers.update({name: None if old is None else old.clone() for name, old in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers.update(buffers)
