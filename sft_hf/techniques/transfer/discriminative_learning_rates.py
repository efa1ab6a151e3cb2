"""Different learning rates for parts of a model, by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sft_hf.models.freezing import matching
from sft_hf.techniques.base import Technique
from sft_hf.techniques.transfer.settings import DiscriminativeLearningRatesSettings

KEY = "techniques: discriminative_learning_rates: scales"


def scales_by_name(model: nn.Module, scales: Mapping[str, float]) -> dict[str, float]:
    """Return for each matching parameter the product of the factors of all patterns that match it.

    Raises RecipeError for a pattern without a match.

    Source: J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, equation 2.
    """
    found: dict[str, float] = {}
    for pattern, scale in scales.items():
        for name in matching(model, pattern, KEY):
            found[name] = found.get(name, 1.0) * scale
    return found


class DiscriminativeLearningRates(Technique[DiscriminativeLearningRatesSettings]):
    """Use different learning rates for parts of a model, for example a higher one for the head.

    A new head often trains best at ten times the rate of the backbone. No extra cost. Parts that should not change
    belong in train.freeze, which also saves time.
    """

    paper = (
        "J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.2, "
        "equation 2"
    )
    allows_frozen_features = True

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """See `scales_by_name`."""
        return scales_by_name(model, self.settings.scales)
