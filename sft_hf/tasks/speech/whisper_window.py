"""Whisper with a shorter input window than the 30 seconds that it pads every clip to.

The encoder adds a table of 1500 position embeddings, one for every 20 ms, and attends over all of them: for a clip of
three seconds, nine tenths of the computation are spent on silence. Here only the first `k` positions are used for `2 k`
frames of spectrogram. The table itself is not changed, so the saved model is complete, and takes 30 seconds again.

There is one window for all clips, or a few (`window_buckets`), of which each clip uses the smallest that it fits into.
A clip's window, and therefore the model's output, depends only on the clip, not on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

if TYPE_CHECKING:
    from sft_hf.tasks.base import Batch

MIN_SECONDS = 2.0
"""Minimum length of a window: after fine-tuning on less, Whisper no longer recognizes pauses."""

FRAMES_PER_POSITION = 2  # the second convolution has stride 2

BUCKETS = 3
"""Maximum number of windows: more would save little padding, and split batches into smaller forward passes."""


@contextmanager
def whisper_window(model: nn.Module, frames: int) -> Iterator[None]:
    """Make every Whisper encoder inside `model` (wrapped or not) take spectrograms of `frames` frames.

    The encoder looks up all positions of its embedding, and checks its input against `config.max_source_positions`;
    both numbers are lowered, and restored at the end. No tensor is copied or cut: if the positions were trained, only
    the used rows would get gradients.

    Args:
        frames: a multiple of `FRAMES_PER_POSITION`, limited by the number of positions.
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


def window_buckets(seconds: np.ndarray, limit: float) -> tuple[float, ...]:
    """Return at most `BUCKETS` windows in ascending order that minimize the total padding of clips of these lengths.

    Each is the `window_seconds` of some clip; the last is that of the longest clip.
    """
    needed, clips = np.unique([window_seconds(float(value), limit) for value in seconds], return_counts=True)
    *shorter, longest = needed.tolist()

    def heard(windows: tuple[float, ...]) -> float:
        return float(clips @ np.asarray(windows)[np.searchsorted(windows, needed)])

    chosen = combinations(shorter, min(BUCKETS - 1, len(shorter)))
    return min(((*windows, longest) for windows in chosen), key=heard)


def whole_seconds(limit: float) -> tuple[float, ...]:
    """Return every window that `window_seconds` may give."""
    return tuple(sorted({window_seconds(float(second), limit) for second in range(1, math.ceil(limit) + 1)}))


def log_mel(extractor: Any, samples: np.ndarray) -> np.ndarray:
    """Return Whisper's log-mel spectrogram of a clip, float32 [mel bins, frames], ending with a frame of silence.

    The extractor's output for the clip padded to 30 s is equal to this, continued with the last frame: silence is at
    the floor of the spectrogram, 8 orders of magnitude below its peak.
    """
    # Enough zeros for a last frame without any of the clip.
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


def split_by_frames(batch: Batch) -> list[tuple[Tensor, Batch]]:
    """Split a batch into parts with one window each; return the rows of each part, int64, and the part.

    Each part is a separate forward pass. Whisper's encoder has no mask, so rows of one pass have the same window; with
    the window of the longest row, a row's loss would depend on the other rows, and the gradient on how a step is split
    into batches. Batches are sorted by length, so few have more than one part.
    """
    if "frames" not in batch:
        return [(torch.arange(len(batch["seconds"])), batch)]
    parts = []
    for frames in batch["frames"].unique().tolist():
        rows = (batch["frames"] == frames).nonzero()[:, 0]
        part = {name: tensor[rows] for name, tensor in batch.items() if name != "frames"}
        for name in ("input_features", "attention_mask"):
            part[name] = part[name][..., :frames].contiguous()
        parts.append((rows, part))
    return parts


def order_of(parts: list[tuple[Tensor, Batch]]) -> Tensor:
    """Return the position of each row of a batch in its concatenated parts; int64 [rows]."""
    return torch.argsort(torch.cat([rows for rows, _ in parts]))
