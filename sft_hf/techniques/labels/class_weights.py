"""Class weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from sft_hf.core.errors import RecipeError, did_you_mean
from sft_hf.core.recipe.sections import TechniqueSettings
from sft_hf.techniques.base import Context, Criterion, Technique


def inverse_frequency(counts: np.ndarray) -> np.ndarray:
    """Return 1 / n for labels of n rows, float64 [labels]; a label without any row counts as if it had one."""
    return 1 / np.maximum(counts, 1)


def effective_number(counts: np.ndarray, beta: float) -> np.ndarray:
    """Return (1 - b) / (1 - b^n) for labels of n rows, float64 [labels]: 1 over their effective number.

    From equal weights, at b = 0, to the inverse frequency, near b = 1: another row of a label that has many says
    little that is new. A label without any row counts as if it had one.

    Source: Y. Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, proposition 1, section 4.
    """
    weights: np.ndarray = (1 - beta) / (1 - beta ** np.maximum(counts, 1))
    return weights


def normalized(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the weights in the same ratios, their mean over all training rows 1: the learning rate keeps its meaning.

    Args:
        weights: float [labels].
        counts: training rows of each label, int [labels].
    """
    return weights * counts.sum() / (weights * counts).sum()


def weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """Return w_c L_c for every class c, float32 [items, classes].

    The sum over a step's items is divided by their number, not by the sum of their weights as torch's mean does: how
    a step is cut must change nothing.
    """
    return weights * losses


def _named(value: Any) -> Any:
    """Labels that YAML reads as numbers or truth values, as the text that they are in the data."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): weight for key, weight in value.items()}


class ClassWeightsSettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["class_weights"] = "class_weights"
    method: Literal["inverse_frequency", "effective_number"] = Field(
        "inverse_frequency",
        description="inverse_frequency: every label counts the same in sum; effective_number: less unequal weights.",
    )
    beta: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999,
        description="Of effective_number: 0 is equal weights, near 1 inverse_frequency; 0.9 to 0.9999 in the paper.",
    )
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None, BeforeValidator(_named)
    ] = Field(
        None, description="Your own instead, {label: weight}; a label left out has 1, and only their ratios matter."
    )


class ClassWeights(Technique[ClassWeightsSettings]):
    """Let the rows of rare labels count more.

    For unbalanced labels where every label matters alike, or, with weights of your own, where one mistake is worse than
    another. The few rows of a rare label are learned by heart sooner, and probabilities are no longer those of the
    data. It costs no time.
    """

    Settings = ClassWeightsSettings
    paper = "Y. Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, proposition 1 and section 4"
    order = 30
    excluded = {
        "speech_recognition": "a transcript has no label whose rows could be counted",
        "multi_label": "every label is a question of its own, answered yes or no; focal_loss and balanced_sampling do",
        "logit_adjustment": "each of the two makes up for rare labels, and both would do it twice",
        "balanced_sampling": "each of the two makes up for rare labels, and both would do it twice",
    }
    neutral = {"method": "effective_number", "beta": 0.0}
    needs_items = True
    needs_label_counts = True
    keeps_prefix = True

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
        names = list(self.context.task.label_counts(()) or ())
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
