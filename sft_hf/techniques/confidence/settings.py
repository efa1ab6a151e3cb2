"""Settings of the techniques for calibration and abstention."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft_hf.core.recipe.component_settings import TechniqueSettings


class AbstentionSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "regression": "predicted numbers have no confidence to abstain by",
    }
    neutral = {}
    needs_validation = True

    name: Literal["abstention"] = "abstention"
    error_rate: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Maximum share of wrong predictions among those given; 0.05: one in twenty."
    )
    bound: Literal["clopper_pearson", "plain"] = Field(
        "clopper_pearson",
        description="Limit the upper confidence bound of the error rate on validation, or (plain) the rate itself, "
        "which is too optimistic if validation is small.",
    )
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="Confidence level of the upper bound."
    )


class TemperatureScalingSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "regression": "predicted numbers have no confidence to scale",
    }
    neutral = {}
    needs_validation = True

    name: Literal["temperature_scaling"] = "temperature_scaling"
