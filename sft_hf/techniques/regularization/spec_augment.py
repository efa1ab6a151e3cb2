"""SpecAugment on Whisper's spectrograms."""

from __future__ import annotations

from typing import Any

import numpy as np

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.base import Context, Technique
from sft_hf.techniques.regularization.settings import SpecAugmentSettings


def masked(
    spectrogram: np.ndarray, time_masks: list[tuple[int, int]], frequency_masks: list[tuple[int, int]]
) -> np.ndarray:
    """Return a copy with spans of frames and bands set to the spectrogram's mean.

    Args:
        spectrogram: float32 [bands, frames].
        time_masks, frequency_masks: (first, number) of frames or bands.

    Source: D. S. Park et al., SpecAugment, 2019, section 2, where masks are 0, the mean of the spectrograms there.
    """
    result = spectrogram.copy()
    mean = spectrogram.mean()
    for first, count in time_masks:
        result[:, first : first + count] = mean
    for first, count in frequency_masks:
        result[first : first + count] = mean
    return result


def draw_masks(size: int, number: int, widest: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Return `number` masks (start, width), with widths from 0 to `widest`, that lie within `size`."""
    masks = []
    for _ in range(number):
        width = int(generator.integers(0, min(widest, size) + 1))
        masks.append((int(generator.integers(0, size - width + 1)), width))
    return masks


class SpecAugment(Technique[SpecAugmentSettings]):
    """Mask random spans of time and frequency in every spectrogram.

    For Whisper. Frequency masks are about half as wide as in the paper's LibriSpeech double policy (27 of 80; 100
    frames), which was used for training from scratch. No extra time per step; needs more epochs than plain training.
    """

    paper = "D. S. Park et al., SpecAugment: A Simple Data Augmentation Method for Speech Recognition, 2019, section 2"

    def __init__(self, settings: SpecAugmentSettings, context: Context) -> None:
        super().__init__(settings, context)
        if not getattr(getattr(context.task, "family", None), "is_whisper", False):
            raise RecipeError("techniques: spec_augment: the model does not use Whisper's spectrograms")

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """See `masked`; the last frame, silence up to the end of the window, is not masked."""
        settings, spectrogram = self.settings, row["features"]
        bands, frames = spectrogram.shape[0], spectrogram.shape[1] - 1
        longest = int(settings.time_mask_ratio * frames)
        time = draw_masks(frames, settings.num_time_masks, longest, generator)
        frequency = draw_masks(bands, settings.num_frequency_masks, settings.frequency_mask_width, generator)
        changed = masked(spectrogram[:, :-1], time, frequency)
        return {**row, "features": np.concatenate([changed, spectrogram[:, -1:]], axis=1)}
