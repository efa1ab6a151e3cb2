"""Reading recordings: decoding, downmixing and resampling, with one-line errors that name the file.

A recording is a path, the bytes of a file, or a mapping with "bytes" or "path" as in data sets on the Hub; optional
"start" and "end" select a part, in seconds. It is converted to mono float32 at the model's sampling rate. For decoding
and durations, see `sft_hf.tasks.speech.decoding`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from sft_hf.core.errors import DataError
from sft_hf.data.loading.media import find_files
from sft_hf.tasks.speech.decoding import AudioInfo, describe, opened

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioInfo",
    "audio_info",
    "describe",
    "encode_audio",
    "find_audio",
    "read_audio",
    "resample",
]

AUDIO_SUFFIXES = (
    *(
        ".wav",
        ".flac",
        ".mp3",
        ".ogg",
        ".oga",
        ".opus",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
    ),
    *(".m4a", ".m4b", ".aac", ".amr", ".awb", ".wma", ".3gp", ".mka", ".webm", ".mp4", ".m4v", ".mov", ".mkv", ".avi"),
    *(".mp2", ".ac3", ".ape", ".wv", ".tta", ".voc", ".sph", ".gsm", ".g722"),
)
"""File name suffixes of recordings in a folder. The format of a file is detected from its content."""

MIN_RATE, MAX_RATE = 1_000, 768_000


def audio_info(recording: Any, limit: float | None = None) -> AudioInfo:
    """Return the properties of a whole recording.

    `limit`: seconds after which decoding stops if the length is only known from decoding, see `AudioInfo.more`.
    Raises DataError if it cannot be decoded, StorageError if the disk fails.
    """
    with opened(recording, limit) as sound:
        return _checked(sound.info, describe(recording))


def _checked(info: AudioInfo, name: str) -> AudioInfo:
    if info.frames <= 0:
        raise DataError(f"{name}: holds no audio (0 frames)")
    if not MIN_RATE <= info.rate <= MAX_RATE:
        raise DataError(
            f"{name}: sampling rate {info.rate} Hz is outside the supported range of {MIN_RATE} to {MAX_RATE} Hz"
        )
    return info


def read_audio(
    recording: Any, rate: int, *, start: float = 0.0, end: float | None = None, limit: float | None = None
) -> np.ndarray:
    """Decode a recording, or the part from `start` to `end` seconds, to mono float32 at `rate`, in [-1, 1].

    The part is exact: it begins with frame round(start x rate of the file). Channels are averaged. `limit`: see
    `audio_info`. Raises DataError if the file cannot be decoded, is shorter than its header says, or has values that
    are not finite; StorageError if the disk fails.
    """
    name = describe(recording)
    with opened(recording, limit) as sound:
        info = _checked(sound.info, name)
        first = min(round(start * info.rate), info.frames)
        last = info.frames if end is None else min(round(end * info.rate), info.frames)
        parts = list(sound.blocks(first, last))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    # Compressed formats only estimate their length; a tenth of a second does not matter.
    if len(samples) < last - first - info.rate // 10:
        raise DataError(
            f"{name}: is cut off: its header says {info.seconds:.2f} s, and the audio ends after "
            f"{(first + len(samples)) / info.rate:.2f} s"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: holds values that are not numbers (NaN or infinity)")
    return resample(samples, info.rate, rate)


def resample(samples: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    """Return mono samples at another rate, band-limited (soxr, high quality)."""
    if rate == wanted or not len(samples):
        return samples
    return np.asarray(soxr.resample(samples, rate, wanted, quality="HQ"), dtype=np.float32)


def encode_audio(samples: np.ndarray, rate: int) -> bytes:
    """Return mono samples as the bytes of an Ogg Vorbis file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def find_audio(folder: Path) -> list[Path]:
    """Return the recordings in a folder and the folders below it, by name. Raises DataError if there are none."""
    found, _ = find_files(folder, AUDIO_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: holds no recordings ({', '.join(AUDIO_SUFFIXES)})")
    return found
