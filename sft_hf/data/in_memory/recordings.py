"""Recordings in memory as table cells: a path, or the bytes of a WAV file with the same samples."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from sft_hf.core.errors import DataError
from sft_hf.data.in_memory.pictures import file_cell
from sft_hf.data.labels.values import is_missing

LOUDEST = 10.0
"""Floating-point samples are within [-1, 1]; clipping may exceed this a little, unscaled integers by far more."""

LARGEST = 2**31 - 2**20  # bytes of samples; in longer WAV files the size field means that the length is unknown

_PCM, _FLOAT = 1, 3  # format tags of WAV files


def recording_cell(value: Any, where: str) -> dict[str, Any] | None:
    """Return a recording as {"bytes": ..., "path": ...}; None if it is missing.

    Args:
        value: a path, the bytes of a file, {"bytes": ..., "path": ...}, {"array": ..., "sampling_rate": ...}, or an
            array and its rate, in either order. Arrays are [samples], [samples, channels] or [channels, samples]:
            floats within [-1, 1], or int16, int32 or uint8.
        where: the row and the column, for messages.

    Raises DataError for anything else.
    """
    if is_missing(value) or type(value).__name__ == "NAType":
        return None
    if (cell := file_cell(value)) is not None:
        return cell
    samples, rate, path = _parts(value, where)
    return {"bytes": wav_bytes(_samples(samples, where), _rate(rate, where)), "path": path}


def _parts(value: Any, where: str) -> tuple[Any, Any, str | None]:
    """Return samples, rate, and path if there is one."""
    if isinstance(value, dict) and "array" in value:
        rate = value.get("sampling_rate", value.get("rate"))
        if rate is None:
            raise DataError(f"{where} holds samples without their rate; give {{'array': ..., 'sampling_rate': ...}}")
        return value["array"], rate, value.get("path") or None
    if isinstance(value, (tuple, list)) and len(value) == 2 and np.ndim(value[0]) != np.ndim(value[1]):
        first, second = value
        return (second, first, None) if np.ndim(first) == 0 else (first, second, None)
    bare = hasattr(value, "__array__")
    held = "an array without its rate" if bare else f"a {type(value).__name__}, {value!r:.40}"
    raise DataError(
        f"{where} holds {held}; give a path, {{'array': samples, 'sampling_rate': rate}}, (samples, rate), or the "
        "bytes of a file"
    )


def _rate(rate: Any, where: str) -> int:
    try:
        number = float(rate)
    except (TypeError, ValueError):
        number = 0.0
    if not (number.is_integer() and 0 < number < 2**31):
        raise DataError(f"{where} holds a recording whose rate is {rate!r:.40}; give samples per second, as 16000")
    return int(number)


def _samples(value: Any, where: str) -> np.ndarray:
    """Return the samples as an array [samples, channels] of a type that WAV files support."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} holds samples that are not an array of numbers ({error})") from None
    shape = f"{array.dtype} array {list(array.shape)}"
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or array.dtype in (np.uint16, np.uint32, np.uint64):
        raise DataError(f"{where} holds a {shape}; samples are [samples] or [samples, channels], of float32 or int16")
    if array.nbytes > LARGEST:
        raise DataError(
            f"{where} holds {array.nbytes} bytes of samples, too many for a WAV file; split it, or give a path"
        )
    if not array.size:
        raise DataError(f"{where} holds a recording without samples")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:  # [channels, samples], as in torchaudio
        array = array.T
    array = array[:, None] if array.ndim == 1 else array
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{where} holds samples that are not finite (NaN or infinity)")
        if (loudest := float(np.abs(array).max())) > LOUDEST:
            raise DataError(
                f"{where} holds samples up to {loudest:g}; samples of floating point are within [-1, 1]: give the "
                "integers as int16, or divide by 32768"
            )
    elif array.dtype in (np.int8, np.int64):
        raise DataError(f"{where} holds a {shape}; samples are float32 within [-1, 1], int16, int32 or uint8")
    return array


def wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    """Return samples [samples, channels] as a WAV file; the bytes depend only on the samples and the rate.

    libsndfile writes the time of day into floating-point files, so that a resumed run would not recognize its rows.
    """
    frames, channels = samples.shape
    data = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<")).tobytes()
    size, bits = samples.dtype.itemsize * channels, 8 * samples.dtype.itemsize
    tag = _FLOAT if samples.dtype.kind == "f" else _PCM
    shape = struct.pack("<HHIIHH", tag, channels, rate, rate * size, size, bits)
    if tag == _FLOAT:
        shape += struct.pack("<H", 0)  # no extension; the number of frames is in a separate chunk
    chunks = [(b"fmt ", shape)] + [(b"fact", struct.pack("<I", frames))] * (tag == _FLOAT) + [(b"data", data)]
    body = b"".join(name + struct.pack("<I", len(held)) + held + b"\0" * (len(held) % 2) for name, held in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body
