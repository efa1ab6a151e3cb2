"""Settings of the techniques that preserve pretrained features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.component_settings import RecipeSections, TechniqueSettings


class DiscriminativeLearningRatesSettings(TechniqueSettings):
    """Settings of the technique."""

    example = {"scales": {"*.bias": 10.0}}
    neutral = {"scales": {"*": 1.0}}

    name: Literal["discriminative_learning_rates"] = "discriminative_learning_rates"
    scales: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="{pattern: factor of optim.learning_rate}, e.g. {'*.embeddings': 0.1, classifier: 10}; patterns "
        "as in train.freeze, including backbone. If several match, their factors are multiplied.",
        min_length=1,
    )


class GradualUnfreezingSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"trained_layers"})
    neutral = {"fraction": 0.0}

    name: Literal["gradual_unfreezing"] = "gradual_unfreezing"
    fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="Fraction of all steps after which everything is trained; layers are unfrozen at equal intervals.",
    )
    epochs_per_layer: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Instead of fraction: epochs until the next layer is unfrozen; 1 in the paper."
    )

    def check(self, recipe: RecipeSections) -> None:
        """See `TechniqueSettings.check`."""
        if self.epochs_per_layer and recipe.data.streaming:
            raise RecipeError(
                "techniques: gradual_unfreezing: epochs_per_layer: a stream has no known epochs; use fraction"
            )


class L2SpSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "peft": "adapters start at zero, so optim.weight_decay has the same effect",
    }
    neutral = {"alpha": 0.0, "beta": 0.0}

    name: Literal["l2_sp"] = "l2_sp"
    alpha: Annotated[float, Field(ge=0)] = Field(0.01, description="Strength of the pull toward the pretrained values.")
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Strength of the pull toward zero for the head, which has no pretrained values; "
        "optim.weight_decay has the same effect.",
    )


class LayerwiseLearningRateDecaySettings(TechniqueSettings):
    """Settings of the technique."""

    neutral = {"decay": 1.0}

    name: Literal["layerwise_learning_rate_decay"] = "layerwise_learning_rate_decay"
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Factor between the learning rates of a layer and the one below; typically 0.65 to 0.95."
    )


class LpFtSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"trained_layers"})
    example = {"probe_fraction": 0.5}
    neutral = {"probe_fraction": 0.0}
    needs_head = True

    name: Literal["lp_ft"] = "lp_ft"
    probe_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="Fraction of all steps in which only the head is trained."
    )
    probe_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1e-3, description="Constant learning rate of these steps; optim.learning_rate and its schedule follow them."
    )


class ReinitLayersSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "peft": "an adapter is saved without the model's own layers, so the new ones would be lost",
    }
    neutral = {"num_layers": 0, "pooler": False}

    name: Literal["reinit_layers"] = "reinit_layers"
    num_layers: NonNegativeInt = Field(
        1, description="Number of top layers to reinitialize; 1 to 6 worked well for BERT, worth tuning."
    )
    pooler: bool = Field(True, description="Also reinitialize the pooler, if there is one.")
