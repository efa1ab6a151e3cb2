"""Class weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sft_hf.core.errors import RecipeError, did_you_mean
from sft_hf.techniques.base import Context, Criterion, Technique
from sft_hf.techniques.labels.settings import ClassWeightsSettings


def inverse_frequency(counts: np.ndarray) -> np.ndarray:
    """Return 1 / n for labels with n rows, float64 [labels]; a label without rows is treated as if it had one."""
    return 1 / np.maximum(counts, 1)


def effective_number(counts: np.ndarray, beta: float) -> np.ndarray:
    """Return (1 - b) / (1 - b^n) for labels with n rows, float64 [labels]: 1 over their effective number.

    Ranges from equal weights at b = 0 to the inverse frequency near b = 1: the more rows a label has, the less
    information another one adds. A label without rows is treated as if it had one.

    Source: Y. Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, proposition 1, section 4.
    """
    weights: np.ndarray = (1 - beta) / (1 - beta ** np.maximum(counts, 1))
    return weights


def normalized(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the weights scaled to mean 1 over all training rows, so that the learning rate need not change.

    Args:
        weights: float [labels].
        counts: number of training rows of each label, int [labels].
    """
    return weights * counts.sum() / (weights * counts).sum()


def weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """Return w_c L_c for every class c, float32 [items, classes].

    The sum over a step's items is divided by their number, not by the sum of their weights as in torch's mean, so that
    it does not depend on how a step is divided into forward passes.
    """
    return weights * losses


class ClassWeights(Technique[ClassWeightsSettings]):
    """Give rows with rare labels more weight in the loss.

    For imbalanced labels that are equally important, or, with custom weights, for mistakes of different cost. The few
    rows of a rare label are memorized sooner, and probabilities no longer match the data. No extra time per step.
    """

    paper = "Y. Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, proposition 1 and section 4"
    order = 30
    allows_frozen_features = True

    def __init__(self, settings: ClassWeightsSettings, context: Context) -> None:
        super().__init__(settings, context)
        counts = np.asarray(context.label_counts, dtype=np.int64)
        self.weights = torch.from_numpy(normalized(self._raw(counts), counts)).float()

    def _raw(self, counts: np.ndarray) -> np.ndarray:
        settings = self.settings
        if settings.weights is None:
            if settings.method == "effective_number":
                return effective_number(counts, settings.beta)
            return inverse_frequency(counts)
        names = list(self.context.task.scorer.label_counts(()) or ())
        if unknown := [name for name in settings.weights if name not in names]:
            raise RecipeError(
                f"techniques: class_weights: weights: no label is called {unknown[0]!r:.80}; "
                f"{did_you_mean(unknown[0], names)}"
            )
        weights = np.asarray([settings.weights.get(name, 1.0) for name in names])
        if not (weights * counts).any():
            raise RecipeError("techniques: class_weights: weights: all training rows have weight 0")
        return weights

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """See `weighted`."""
        return lambda logits: weighted(criterion(logits), self.weights.to(logits.device))
