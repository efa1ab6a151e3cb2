"""Whisper in the window that the data need, instead of the 30 seconds that it pads every clip to.

The encoder adds a table of 1500 position vectors, one for every 20 ms, and attends over all of them: for a clip of
three seconds, nine tenths of that work go into silence. Here only the first `k` positions are used while the model runs
on `2 k` frames of spectrogram. The table itself is never touched, so that the model that is saved is whole, and
takes 30 seconds again.

One window for all clips, or a few (`window_buckets`), each clip in the smallest that it fits into. A clip's window is a
function of the clip alone, never of the batch it is in: so is all that the model says of it.
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
"""The floor of a window: fine-tuned on less, Whisper would no longer recognize pauses."""

FRAMES_PER_POSITION = 2  # the second convolution has stride 2

BUCKETS = 3
"""The most windows of `window_buckets`: more would save little padding, and cut batches into smaller forward passes."""


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


def window_buckets(seconds: np.ndarray, limit: float) -> tuple[float, ...]:
    """Return at most `BUCKETS` windows in ascending order, such that clips of these lengths are padded least in all.

    Each is a window that `window_seconds` gives for some clip, the last the longest clip's.
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


def split_by_frames(batch: Batch) -> list[tuple[Tensor, Batch]]:
    """Return the batch in parts with one window each, and the rows of each part, int64.

    Each part is a separate forward pass. Whisper's encoder knows no mask, so that rows of one pass have one window;
    were it the longest row's, a row's loss would depend on the other rows, and the gradient on how a step is cut
    into batches. The plan sorts by length: few batches have more than one part.
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
