"""SpecAugment on Whisper's spectrograms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.sections import TechniqueSettings
from sft_hf.techniques.base import Context, Technique


def masked(
    spectrogram: np.ndarray, time_masks: list[tuple[int, int]], frequency_masks: list[tuple[int, int]]
) -> np.ndarray:
    """Return a copy in which spans of frames and of bands hold the spectrogram's mean.

    Args:
        spectrogram: float32 [bands, frames].
        time_masks, frequency_masks: first and number of the frames, or bands.

    Source: D. S. Park et al., SpecAugment, 2019, section 2, whose spectrograms have mean 0, their masks' value.
    """
    result = spectrogram.copy()
    mean = spectrogram.mean()
    for first, count in time_masks:
        result[:, first : first + count] = mean
    for first, count in frequency_masks:
        result[first : first + count] = mean
    return result


def draw_masks(size: int, number: int, widest: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Return `number` masks: a width from 0 to `widest`, and a beginning at which it lies within `size`."""
    masks = []
    for _ in range(number):
        width = int(generator.integers(0, min(widest, size) + 1))
        masks.append((int(generator.integers(0, size - width + 1)), width))
    return masks


class SpecAugmentSettings(TechniqueSettings):
    """Settings of the technique."""

    name: Literal["spec_augment"] = "spec_augment"
    num_time_masks: NonNegativeInt = Field(2, description="Spans of time that are masked in each clip.")
    time_mask_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="How much of a clip the longest span may take."
    )
    num_frequency_masks: NonNegativeInt = Field(2, description="Spans of neighbouring bands that are masked.")
    frequency_mask_width: NonNegativeInt = Field(
        15, description="How many bands the widest span may take; Whisper has 80, or 128."
    )


class SpecAugment(Technique[SpecAugmentSettings]):
    """Mask spans of time and of frequency in every spectrogram, others in each epoch.

    For Whisper. Spans of bands are about half as wide as in the paper's LibriSpeech double policy (27 of 80; 100
    frames), whose models learned from nothing. It costs no time, and wants more epochs than plain training.
    """

    Settings = SpecAugmentSettings
    paper = "D. S. Park et al., SpecAugment: A Simple Data Augmentation Method for Speech Recognition, 2019, section 2"
    excluded = {
        "image_classification": "a picture is no spectrogram; task.augmentation and cutmix hide parts of pictures",
        "text_classification": "a text has no spectrogram; text_augmentation leaves out words",
        "ctc": "the model reads samples; task.mask_time_prob and mask_feature_prob mask what it makes of them",
    }
    neutral = {"num_time_masks": 0, "num_frequency_masks": 0}

    def __init__(self, settings: SpecAugmentSettings, context: Context) -> None:
        super().__init__(settings, context)
        if not getattr(getattr(context.task, "family", None), "is_whisper", False):
            raise RecipeError("techniques: spec_augment: the model has no spectrogram of Whisper's kind")

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """See `masked`; the last frame, silence that continues to the end of the window, stays."""
        settings, spectrogram = self.settings, row["features"]
        bands, frames = spectrogram.shape[0], spectrogram.shape[1] - 1
        longest = int(settings.time_mask_ratio * frames)
        time = draw_masks(frames, settings.num_time_masks, longest, generator)
        frequency = draw_masks(bands, settings.num_frequency_masks, settings.frequency_mask_width, generator)
        changed = masked(spectrogram[:, :-1], time, frequency)
        return {**row, "features": np.concatenate([changed, spectrogram[:, -1:]], axis=1)}
