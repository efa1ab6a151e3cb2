"""Settings of the regularization techniques."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.component_settings import RecipeSections, TechniqueSettings

Probability = Annotated[float, Field(ge=0, le=1)]


class AdversarialSettings(TechniqueSettings):
    """Settings of the technique."""

    neutral = {"weight": 0.0}
    needs_embeddings = True

    name: Literal["adversarial"] = "adversarial"
    epsilon: Annotated[float, Field(gt=0)] = Field(1.0, description="L2 norm of the perturbation of a row's inputs.")
    weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Weight of the loss of the perturbed inputs; the rest is that of the plain ones."
    )

    def check(self, recipe: RecipeSections) -> None:
        """See `TechniqueSettings.check`."""
        if recipe.train.mixed_precision == "fp16":
            raise RecipeError(
                "techniques: adversarial cannot be combined with train.mixed_precision: fp16, in which gradients of "
                "inputs vanish; use bf16 or no"
            )
        if recipe.train.torch_compile == "on":
            raise RecipeError(
                "techniques: adversarial cannot be combined with train.torch_compile: on, which drops what the second "
                "backward pass needs; use auto"
            )


class CutmixSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"partner_rows"})
    excluded = {
        "text": "texts have no area to cut a box from; mixup mixes token embeddings",
        "speech": "a box of a spectrogram has no corresponding part of the transcript; mixup mixes spectrograms",
    }
    neutral = {"probability": 0.0}
    needs_partner = True

    name: Literal["cutmix"] = "cutmix"
    alpha: Annotated[float, Field(gt=0)] = Field(
        1.0, description="The kept area is drawn from Beta(alpha, alpha); 1: uniform."
    )
    probability: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="Fraction of the rows that get a box.")


class DropoutSettings(TechniqueSettings):
    """Settings of the technique."""

    neutral = {"probability": None, "attention_probability": None}

    name: Literal["dropout"] = "dropout"
    probability: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.1, description="Dropout probability of hidden states; null: the pretrained model's."
    )
    attention_probability: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Dropout probability of attention weights; null: the same as `probability`."
    )


class EmaSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"evaluated_weights"})
    neutral = {"decay": 0.0}

    name: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="Weight of the previous average in each step; 0.999 averages over about 1,000 steps."
    )


class LabelSmoothingSettings(TechniqueSettings):
    """Settings of the technique."""

    neutral = {"smoothing": 0.0}
    needs_items = True

    name: Literal["label_smoothing"] = "label_smoothing"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of each label that is spread over all classes."
    )


class LayerDropSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"skipped_layers"})
    example = {"probability": 0.5}
    neutral = {"probability": 0.0}

    name: Literal["layer_drop"] = "layer_drop"
    probability: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Probability of skipping a layer in a step; 0.2 or more if layers will be pruned later."
    )

    def check(self, recipe: RecipeSections) -> None:
        """See `TechniqueSettings.check`."""
        if recipe.train.torch_compile == "on":
            raise RecipeError(
                "techniques: layer_drop cannot be combined with train.torch_compile, which would recompile for each "
                "choice of layers"
            )


class MixupSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"partner_rows"})
    neutral = {"probability": 0.0}
    needs_embeddings = True
    needs_partner = True

    name: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Field(gt=0)] = Field(
        0.2, description="Mixing weights are drawn from Beta(alpha, alpha): small values mix little, 1 is uniform."
    )
    probability: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="Fraction of the rows that are mixed.")


class RDropSettings(TechniqueSettings):
    """Settings of the technique."""

    neutral = {"alpha": 0.0}
    needs_items = True

    name: Literal["r_drop"] = "r_drop"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0,
        description="Weight of the divergence: 0.1 to 1 for classifiers, up to 5; 0 is plain training.",
    )


class SamSettings(TechniqueSettings):
    """Settings of the technique."""

    neutral = {"rho": 0.0}

    name: Literal["sam"] = "sam"
    rho: Annotated[float, Field(ge=0)] = Field(
        0.05,
        description="Radius of the neighborhood, in the L2 norm of the weights; about ten times larger if adaptive.",
    )
    adaptive: bool = Field(False, description="ASAM: scale the neighborhood by the size of the weights.")

    def check(self, recipe: RecipeSections) -> None:
        """See `TechniqueSettings.check`."""
        if recipe.train.mixed_precision == "fp16":
            raise RecipeError(
                "techniques: sam cannot be combined with train.mixed_precision: fp16, whose gradients are scaled"
            )


class SpecAugmentSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "image": "images have no spectrogram; task.augmentation and cutmix hide parts of images",
        "text": "texts have no spectrogram; text_augmentation deletes words",
        "ctc": "the model reads raw audio; task.mask_time_prob and task.mask_feature_prob mask its features",
    }
    neutral = {"num_time_masks": 0, "num_frequency_masks": 0}

    name: Literal["spec_augment"] = "spec_augment"
    num_time_masks: NonNegativeInt = Field(2, description="Number of time masks per clip.")
    time_mask_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Maximum length of a time mask, as a fraction of the clip."
    )
    num_frequency_masks: NonNegativeInt = Field(2, description="Number of frequency masks per clip.")
    frequency_mask_width: NonNegativeInt = Field(
        15, description="Maximum width of a frequency mask in bands; Whisper has 80 or 128."
    )


class StochasticDepthSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"skipped_layers"})
    example = {"probability": 0.5}
    neutral = {"probability": 0.0}

    name: Literal["stochastic_depth"] = "stochastic_depth"
    probability: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Probability of skipping the last layer; lower layers in proportion to their depth."
    )


class SubwordRegularizationSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "image": "images have no tokens",
        "speech": "tokens are the targets, and evaluation uses the standard tokenization",
    }
    example = {"probability": 0.5}
    neutral = {"probability": 0.0}

    name: Literal["subword_regularization"] = "subword_regularization"
    probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Fraction of the splittable tokens that are split."
    )


class SwaSettings(TechniqueSettings):
    """Settings of the technique."""

    claims = frozenset({"evaluated_weights"})
    example = {"fraction": 1.0, "every": 1}
    neutral = {"fraction": 0.0}

    name: Literal["swa"] = "swa"
    fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="Fraction of training, at its end, in which weights are collected; 0.25 is the last quarter."
    )
    every: PositiveInt | None = Field(
        None, description="Collect weights every N steps, and at the end; default: at the end of each epoch."
    )
    learning_rate_factor: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Constant learning rate during collection, as a factor of optim.learning_rate."
    )


class TextAugmentationSettings(TechniqueSettings):
    """Settings of the technique."""

    excluded = {
        "image": "images have no words; task.augmentation changes images",
        "speech": "words are the targets; spec_augment changes recordings",
    }
    neutral = {"deletion": 0.0, "swap": 0.0, "masking": 0.0}

    name: Literal["text_augmentation"] = "text_augmentation"
    deletion: Probability = Field(0.1, description="Fraction of the words that are deleted.")
    swap: Probability = Field(0.05, description="Fraction of the words that are swapped with the next one.")
    masking: Probability = Field(
        0.0, description="Fraction of the words whose tokens are replaced by the tokenizer's mask (or unknown) token."
    )
