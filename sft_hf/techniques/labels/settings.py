"""Settings of the techniques for noisy and imbalanced labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sft_hf.core.recipe.component_settings import TechniqueSettings


def _named(value: Any) -> Any:
    """Convert labels that YAML reads as numbers or booleans to strings, as in the data."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): weight for key, weight in value.items()}


class BalancedSamplingSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"label_frequencies"})
    excluded = {
        "regression": "regression has no labels to count",
        "speech": "transcripts have no labels to count",
    }
    neutral = {"strength": 0.0}
    needs_label_counts = True

    name: Literal["balanced_sampling"] = "balanced_sampling"
    strength: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="From 0 (original frequencies) to 1 (equal frequencies); 0.5 is square-root sampling."
    )


class BootstrappingSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"loss_function"})
    neutral = {"beta": 1.0}
    needs_items = True

    name: Literal["bootstrapping"] = "bootstrapping"
    mode: Literal["hard", "soft"] = Field(
        "hard", description="Prediction to mix in: hard, the most likely class; soft, the probabilities."
    )
    beta: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8,
        description="Weight of the given label; in the paper 0.8 for hard and 0.95 for soft; 1 is plain training.",
    )


class ClassWeightsSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"label_frequencies"})
    excluded = {
        "speech": "transcripts have no labels to count",
        "multi_label": "every label is a separate yes-or-no decision; use focal_loss or balanced_sampling",
    }
    neutral = {"method": "effective_number", "beta": 0.0}
    needs_items = True
    needs_label_counts = True

    name: Literal["class_weights"] = "class_weights"
    method: Literal["inverse_frequency", "effective_number"] = Field(
        "inverse_frequency",
        description="inverse_frequency: every label has the same total weight; effective_number: less extreme weights.",
    )
    beta: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999,
        description="For effective_number: 0 gives equal weights, near 1 inverse_frequency; 0.9 to 0.9999 in the "
        "paper.",
    )
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None, BeforeValidator(_named)
    ] = Field(
        None, description="Custom weights, {label: weight}; labels that are not listed have 1. Only ratios matter."
    )


class FocalLossSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"loss_function"})
    neutral = {"gamma": 0.0}
    needs_items = True

    name: Literal["focal_loss"] = "focal_loss"
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        2.0, description="Strength of the down-weighting; 0 is cross-entropy."
    )


class GeneralizedCrossEntropySettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"loss_function"})
    neutral = {"q": 0.0}
    needs_items = True

    name: Literal["generalized_cross_entropy"] = "generalized_cross_entropy"
    q: Annotated[float, Field(ge=0, le=1)] = Field(
        0.7, description="From 0 (cross-entropy) to 1 (mean absolute error: robust to wrong labels, but slow)."
    )


class LogitAdjustmentSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"label_frequencies"})
    excluded = {
        "speech": "transcripts have no labels to count",
        "multi_label": "every label is a separate yes-or-no decision; use focal_loss or balanced_sampling",
    }
    neutral = {"tau": 0.0}
    needs_items = True
    needs_label_counts = True

    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="Strength: 1 optimizes the mean accuracy over labels, 0 is plain training."
    )
