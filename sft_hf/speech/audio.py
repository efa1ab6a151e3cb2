"""Reading recordings safely: soundfile decodes, soxr resamples, and whatever is wrong is one sentence about the file.

A recording is a path, the bytes of a file, or `{"bytes": ..., "path": ...}` as the data sets of the Hub have it. It
becomes mono float32 at the model's rate. The header is looked at first: nothing is decoded that is too long, and no
more is read than the header promises.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from sft_hf.data.media import find_files
from sft_hf.errors import DataError, StorageError, did_you_mean
from sft_hf.filesystem import STORAGE_ERRNOS

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64")

MIN_RATE, MAX_RATE = 1_000, 768_000
_BLOCK = 2**20  # frames decoded at once, so that many channels cost no more than a few


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says; `rate` in frames a second."""

    frames: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.frames / self.rate


def describe(recording: Any) -> str:
    """Return how a message names a recording: its path, or what else it is."""
    if isinstance(recording, dict):
        recording = recording.get("path") or recording.get("bytes")
    return str(recording) if isinstance(recording, (str, os.PathLike)) else "the recording"


def audio_info(recording: Any) -> AudioInfo:
    """Read a recording's header. Raises DataError for what cannot be decoded, StorageError if the disk fails."""
    with _opened(recording) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
    name = describe(recording)
    if info.frames <= 0:
        raise DataError(f"{name}: holds no audio (0 frames)")
    if not MIN_RATE <= info.rate <= MAX_RATE:
        raise DataError(f"{name}: says {info.rate} samples a second; sound has {MIN_RATE} to {MAX_RATE}")
    return info


def read_audio(recording: Any, rate: int, *, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """Decode a recording, or the part from `start` to `end` seconds, to mono float32 at `rate`, in [-1, 1].

    Channels are averaged. Raises DataError if the file cannot be decoded, ends before its header says, or holds values
    that are not finite; StorageError if the disk fails.
    """
    info = audio_info(recording)
    first = min(round(start * info.rate), info.frames)
    last = info.frames if end is None else min(round(end * info.rate), info.frames)
    with _opened(recording) as file:
        if first:
            file.seek(first)
        parts = list(_mono_blocks(file, last - first))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    name = describe(recording)
    # Compressed formats only estimate their length; a tenth of a second is no loss.
    if len(samples) < last - first - info.rate // 10:
        raise DataError(
            f"{name}: is cut off: its header says {info.seconds:.2f} s, and the audio ends after "
            f"{(first + len(samples)) / info.rate:.2f} s"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: holds values that are no numbers (NaN or infinity)")
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


def _mono_blocks(file: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    while frames > 0:
        block = file.read(min(frames, max(1, _BLOCK // file.channels)), dtype="float32", always_2d=True)
        if not len(block):
            return
        frames -= len(block)
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


@contextmanager
def _opened(recording: Any) -> Iterator[soundfile.SoundFile]:
    """Open a recording for soundfile, and say what is wrong with it in one line."""
    name = describe(recording)
    try:
        with _byte_stream(recording) as stream:
            if not stream.read(1):
                raise DataError(f"{name}: is an empty file")
            stream.seek(0)
            # By its content alone: with the name, soundfile would take x.raw for samples without a header.
            with soundfile.SoundFile(_Nameless(stream)) as file:
                yield file
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2][:200]
        raise DataError(f"{name}: is no recording that can be read ({reason}); WAV, FLAC, MP3 and OGG can") from error
    except FileNotFoundError as error:
        folder = Path(name).parent
        siblings = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise DataError(f"{name}: there is no such file; {did_you_mean(Path(name).name, siblings)}") from error
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise StorageError(f"{name}: cannot be read: {error.strerror}") from error
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _byte_stream(recording: Any) -> Iterator[Any]:
    if isinstance(recording, dict):
        held, path = recording.get("bytes"), recording.get("path")
        recording = held if held is not None else path
    if isinstance(recording, (bytes, bytearray, memoryview)):
        yield io.BytesIO(recording)
    elif isinstance(recording, (str, os.PathLike)) and str(recording):
        if os.path.exists(recording) and not os.path.isfile(recording):  # opening a pipe would wait for ever
            raise DataError(f"{recording}: is a folder or device; name the file, not its folder")
        with open(recording, "rb") as file:
            yield file
    else:
        kind = "nothing" if recording is None or recording == "" else f"{type(recording).__name__}"
        raise DataError(f"the recording: there is {kind} where a path or the bytes of a file should be")


class _Nameless:
    """A stream without the `name` that soundfile would judge the format by."""

    def __init__(self, stream: Any) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        if hasattr(stream, "readinto"):
            self.readinto = stream.readinto

    def write(self, data: bytes) -> int:
        raise io.UnsupportedOperation("this recording is only read")
