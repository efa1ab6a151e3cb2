"""Settings of image classification in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft_hf.core.recipe.component_settings import TaskSettings


class ImageClassificationSettings(TaskSettings):
    """Settings of the task."""

    modality = "image"
    pipeline_tag = "image-classification"

    name: Literal["image_classification"] = "image_classification"
    augmentation: Literal["none", "trivial", "rand", "evaluation"] = Field(
        "none",
        description="Augmentation of training images in addition to cropping and flipping: none, TrivialAugment "
        "(trivial) or RandAugment (rand). evaluation: no crop or flip either; images are processed as in "
        "evaluation.",
    )
    min_crop_area: Annotated[float, Field(gt=0, le=1)] = Field(
        0.35, description="Minimum fraction of a training image's area that a random crop keeps."
    )
    horizontal_flip: bool = Field(
        True, description="Mirror half of the training images; turn off if left and right differ in meaning."
    )
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Fraction of an image's shorter side that the center crop of evaluation keeps; 1: all. For "
        "processors that have it (timm, ConvNeXt); default: the pretrained model's.",
    )
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = Field(
        "auto",
        description="auto: multi-label if the label column holds lists, else one label per row. regression: the label "
        "column holds numbers to predict, or lists of numbers of equal length.",
    )
