"""Changes to a training clip's sound. Each is a pure function of the clip and a random generator."""

from __future__ import annotations

import numpy as np

from sft_hf.tasks.speech.audio import resample


def change_speed(samples: np.ndarray, factor: float, rate: int) -> np.ndarray:
    """Play a clip `factor` times as fast; pitch and duration change together.

    Source: T. Ko, V. Peddinti, D. Povey and S. Khudanpur, Audio augmentation for speech recognition, Interspeech 2015.
    """
    return resample(samples, rate * factor, rate)


def add_noise(samples: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """Add white noise, `snr_db` decibels below the clip's mean power; a silent clip stays as it is."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    if not power:
        return samples
    noise = generator.standard_normal(len(samples), dtype=np.float32)
    return samples + noise * np.float32(np.sqrt(power / 10 ** (snr_db / 10)))


def clip_generator(seed: int, epoch: int, row_id: int) -> np.random.Generator:
    """Return the generator of one clip in one epoch: the same whatever batch, rank or worker the clip is in."""
    return np.random.default_rng([seed, epoch, row_id, 0x5BEEC4])
