"""Whisper in the window that the data need, instead of the 30 seconds that it pads every clip to.

The encoder adds a table of 1500 position vectors, one for every 20 ms, and attends over all of them: for a clip of
three seconds, nine tenths of that work go into silence. Here only the first `k` positions are used while the model runs
on `2 k` frames of spectrogram. The table itself is never touched, so that the model that is saved is whole, and
takes 30 seconds again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

MIN_SECONDS = 2.0
"""The floor of a window: fine-tuned to less, Whisper would hardly hear a pause again."""

FRAMES_PER_POSITION = 2  # the second convolution has stride 2


@contextmanager
def whisper_window(model: nn.Module, frames: int) -> Iterator[None]:
    """Let every Whisper encoder inside `model` (wrapped or not) take spectrograms of `frames` frames.

    The encoder looks up as many positions as its embedding says it has, and checks its input against
    `config.max_source_positions`; these two numbers are lowered, and put back at the end. No tensor is copied or cut:
    were the positions trained, gradients would reach the rows used, and only them.

    Args:
        frames: a multiple of `FRAMES_PER_POSITION`, no more than the table has positions for.
    """
    encoders = [module for module in model.modules() if isinstance(module, WhisperEncoder)]
    assert encoders, "there is no Whisper encoder in this model"
    positions, rest = divmod(frames, FRAMES_PER_POSITION)
    assert not rest and all(0 < positions <= len(encoder.embed_positions.weight) for encoder in encoders), frames
    before = [encoder.config.max_source_positions for encoder in encoders]
    try:
        for encoder in encoders:
            encoder.config.max_source_positions = positions
            encoder.embed_positions.num_embeddings = positions
        yield
    finally:
        for encoder, whole in zip(encoders, before, strict=True):
            encoder.config.max_source_positions = whole
            encoder.embed_positions.num_embeddings = len(encoder.embed_positions.weight)


def window_seconds(longest: float, limit: float) -> float:
    """Return the window for clips of up to `longest` seconds: the next whole second, `MIN_SECONDS` to `limit`."""
    return min(max(float(math.ceil(longest)), MIN_SECONDS), limit)


def log_mel(extractor: Any, samples: np.ndarray) -> np.ndarray:
    """Return Whisper's log-mel spectrogram of a clip, float32 [mel bins, frames], ending with a frame of silence.

    What the extractor gives for the clip padded to 30 s begins with this, and goes on with its last frame to the end:
    silence lies at the floor of the spectrogram, 8 orders of magnitude below its peak.
    """
    # Zeros enough that the last frame sees none of the clip.
    padded = np.concatenate([samples, np.zeros(2 * extractor.n_fft, np.float32)])
    options = {"padding": "do_not_pad", "truncation": False, "return_tensors": "np"}
    features = extractor(padded, sampling_rate=extractor.sampling_rate, **options)["input_features"][0]
    frames = -(-(len(samples) + extractor.n_fft) // extractor.hop_length)
    return np.ascontiguousarray(features[:, : frames + 1], dtype=np.float32)


def fit_to_window(mel: np.ndarray, frames: int) -> np.ndarray:
    """Return a spectrogram of `log_mel` with exactly `frames` frames: cut, or continued with silence."""
    missing = frames - mel.shape[1]
    if missing <= 0:
        return mel[:, :frames]
    return np.concatenate([mel, np.repeat(mel[:, -1:], missing, axis=1)], axis=1)
