"""Decoding recordings: by libsndfile, with the format detected from the content, else by ffmpeg if it is installed.

The length in a header is not always correct. WAV files written to a pipe have a length of 0 or 4 GB, MP3 files without
a Xing header make a decoder guess, and FLAC streams may have no length. Such recordings are decoded once from the
beginning, and their decoded length is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile

from sft_hf.core.errors import DataError, StorageError
from sft_hf.core.filesystem import STORAGE_ERRNOS, no_such_file
from sft_hf.tasks.speech.ffmpeg import ffmpeg_blocks

Blocks = Iterator[np.ndarray]
"""Mono float32 samples, piece by piece."""

BLOCK = 2**20  # samples (of all channels) decoded at once
MAX_FRAMES = 2**30  # maximum for a recording that is decoded as a whole: 18 hours at 16 kHz
_IN_MEMORY = 2**24  # frames; longer recordings that are decoded as a whole go to a temporary file
_UNKNOWN_FRAMES = 2**62  # libsndfile reports 2**63 - 1 for a FLAC stream without a length
_MP3_FACTOR = 50  # more than the ratio of the highest bit rate of MP3 (320 kbit/s) to the lowest (8)
_UNKNOWN_SIZES = (0, 0x7FFFF000)  # sizes of a WAV file's data that mean "unknown": 0, or this and more


@dataclass(frozen=True)
class AudioInfo:
    """Properties of a recording before its samples are read.

    Attributes:
        frames: samples of one channel.
        rate: frames per second.
        channels: number of channels.
        decoder: "libsndfile" or "ffmpeg".
        promised: frames according to the header, if the file is shorter.
        more: whether the recording is longer than `frames`, as decoding stopped at the caller's limit.
    """

    frames: int
    rate: int
    channels: int
    decoder: str = "libsndfile"
    promised: int | None = None
    more: bool = False

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.frames / self.rate


@dataclass(frozen=True)
class Sound:
    """An opened recording: its `info`, and `blocks(first, last)`, the mono samples of these frames."""

    info: AudioInfo
    blocks: Callable[[int, int], Blocks]


def describe(recording: Any) -> str:
    """Return the name of a recording for messages: its path, or "the recording"."""
    if isinstance(recording, dict):
        recording = recording.get("path") or recording.get("bytes")
    return str(recording) if isinstance(recording, (str, os.PathLike)) else "the recording"


@contextmanager
def opened(recording: Any, limit: float | None = None) -> Iterator[Sound]:
    """Open a recording: a path, the bytes of a file, or `{"bytes": ..., "path": ...}`.

    Args:
        recording: see above; other keys of a mapping are ignored.
        limit: seconds after which decoding stops if the length is only known from decoding, see `AudioInfo.more`.

    Raises DataError if it cannot be decoded, StorageError if the disk fails.
    """
    name = describe(recording)
    with _one_line_errors(name), _byte_stream(recording) as stream:
        if not stream.read(1):
            raise DataError(f"{name}: is an empty file")
        stream.seek(0)
        with _libsndfile(stream) as (file, promised, refusal):
            if file is None:
                yield _decoded(recording, limit, refusal)
            elif _length_is_known(file):
                info = AudioInfo(file.frames, file.samplerate, file.channels, promised=promised)
                yield Sound(info, lambda first, last: _file_blocks(file, first, last))
            else:
                yield _decoded(recording, limit)


# --- libsndfile --------------------------------------------------------------------------------------------------


@contextmanager
def _libsndfile(stream: Any) -> Iterator[tuple[soundfile.SoundFile | None, int | None, str]]:
    """Yield the file, `AudioInfo.promised`, and the reason if libsndfile does not open it (file None)."""
    head = stream.read(1 << 16)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    view, data_size, guessed = _Nameless(stream, size), None, False
    if head[:4] in (b"RIFF", b"RIFX") and (found := _wav_data(head)):
        place, data_size, block_align, order = found
        if data_size == 0 and size > place + 4:  # written to a pipe, or not finished
            view = _Nameless(stream, size, (place, struct.pack(f"{order}I", min(size - place - 4, 2**32 - 1))))
    elif guessed := _is_mp3_without_length(stream, head):
        view = _Nameless(stream, size, claimed=size * _MP3_FACTOR)
    try:
        # Without the name: by its name, soundfile would read x.raw as samples without a header.
        file = soundfile.SoundFile(view)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        yield None, None, _reason(error)
        return
    with file:
        if file.frames <= 0 or file.format == "RAW":
            yield None, None, "holds no audio (0 frames)"
            return
        promised = None
        if data_size is not None and _UNKNOWN_SIZES[0] < data_size < _UNKNOWN_SIZES[1] and block_align:
            stated = data_size // block_align
            if file.subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")) and stated > file.frames:
                promised = stated
        elif file.format == "MP3" and not guessed:
            promised = file.frames
        yield file, promised, ""


def _length_is_known(file: soundfile.SoundFile) -> bool:
    compressed = file.format in ("MP3", "MPEG") or file.subtype.startswith("MPEG")
    return file.frames < _UNKNOWN_FRAMES and not compressed


def _file_blocks(file: soundfile.SoundFile, first: int, last: int) -> Blocks:
    if first:
        file.seek(first)
    left = last - first
    while left > 0:
        block = file.read(min(left, max(1, BLOCK // file.channels)), dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield _mono(block)


def _mono(block: np.ndarray) -> np.ndarray:
    """Average the channels of [frames, channels]."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def _wav_data(head: bytes) -> tuple[int, int, int, str] | None:
    """Return position and value of the data size in a WAV header, bytes per frame and byte order; None if not found."""
    order = "<" if head[:4] == b"RIFF" else ">"
    place, block_align = 12, 0
    while head[8:12] == b"WAVE" and place + 8 <= len(head):
        kind, size = head[place : place + 4], struct.unpack_from(f"{order}I", head, place + 4)[0]
        if kind == b"data":
            return place + 4, size, block_align, order
        if kind == b"fmt " and place + 22 <= len(head):
            block_align = struct.unpack_from(f"{order}H", head, place + 20)[0]
        place += 8 + size + size % 2
    return None


def _is_mp3_without_length(stream: Any, head: bytes) -> bool:
    """Whether a file is an MP3 stream without the number of frames in its first frame (Xing, Info, VBRI)."""
    frame = head[:400]
    if head[:3] == b"ID3" and len(head) > 10:
        sizes = head[6:10]
        stream.seek(10 + (sizes[0] << 21 | sizes[1] << 14 | sizes[2] << 7 | sizes[3]))
        frame = stream.read(400)
        stream.seek(0)
    is_mp3 = len(frame) > 4 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0 and frame[1] & 0x06 == 0x02
    return is_mp3 and not any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


class _Nameless:
    """A stream without a `name`, from which soundfile would guess the format.

    `patch` (position, bytes) replaces the file's content at that position. `claimed` is a size larger than the file's:
    libsndfile limits the frames of an MP3 file to an estimate from its size, which must therefore be larger.
    """

    def __init__(self, stream: Any, size: int, patch: tuple[int, bytes] | None = None, claimed: int = 0) -> None:
        self._stream, self._end, self._size, self._patch = stream, size, max(size, claimed), patch
        self._place = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, count: int) -> bytes:
        data = b""
        if 0 <= self._place < self._end:  # a corrupt header may make libsndfile seek anywhere
            self._stream.seek(self._place)
            data = self._stream.read(count)
        elif self._size > self._end and self._size - 256 <= self._place < self._size:  # where an ID3 tag would be
            data = bytes(min(count, self._size - self._place))
        if self._patch is not None:
            data = self._patched(data, *self._patch)
        self._place += len(data)
        return data

    def _patched(self, data: bytes, place: int, content: bytes) -> bytes:
        first, last = max(place, self._place), min(place + len(content), self._place + len(data))
        if first >= last:
            return data
        return data[: first - self._place] + content[first - place : last - place] + data[last - self._place :]

    def write(self, data: bytes) -> int:
        raise io.UnsupportedOperation("this recording is only read")


# --- recordings that are decoded as a whole ----------------------------------------------------------------------

_last: tuple[Any, Sound] | None = None  # the last decoded recording: its parts are usually read in sequence
_lock = threading.Lock()


def _decoded(recording: Any, limit: float | None, refusal: str | None = None) -> Sound:
    """Decode a whole recording, unless it was the last one. `refusal`: why libsndfile cannot; ffmpeg is used then."""
    global _last
    key = _identity(recording), limit
    with _lock:
        if _last is not None and _last[0] in (key, (key[0], None)):
            return _last[1]
    name = describe(recording)
    if refusal is None:
        with _byte_stream(recording) as stream, _libsndfile(stream) as (file, promised, _):
            assert file is not None
            if file.format == "FLAC":
                # soundfile seeks after each read, which cannot work in a stream of unknown length.
                file._info.seekable = 0
            rate, channels = file.samplerate, file.channels
            sound = _collected(name, _file_blocks(file, 0, _UNKNOWN_FRAMES), rate, channels, "libsndfile", limit)
            if promised is not None and not sound.info.more and sound.info.frames < promised - rate // 10:
                sound = replace(sound, info=replace(sound.info, promised=promised))
    else:
        with _as_file(recording) as path, ffmpeg_blocks(path, name, refusal) as (rate, channels, blocks):
            sound = _collected(name, map(_mono, blocks), rate, channels, "ffmpeg", limit)
    with _lock:
        _last = (key[0], limit if sound.info.more else None), sound
    return sound


def _collected(name: str, blocks: Blocks, rate: int, channels: int, decoder: str, limit: float | None) -> Sound:
    if limit is not None and (limit + 1) * rate >= MAX_FRAMES:  # even task.max_seconds: .inf
        limit = None
    most = MAX_FRAMES if limit is None else int((limit + 1) * rate)
    parts: list[np.ndarray] = []
    aside: Any = None
    frames = 0
    more = False
    for block in blocks:
        frames += len(block)
        parts.append(np.asarray(block, dtype=np.float32))
        if frames > most:
            more = True
            break
        if aside is None and frames > _IN_MEMORY:
            aside = tempfile.TemporaryFile(prefix="sft-hf-")  # noqa: SIM115 - closed with its samples
        if aside is not None:
            aside.write(b"".join(part.tobytes() for part in parts))
            parts = []
    if more and limit is None:
        raise DataError(f"{name}: is longer than {MAX_FRAMES / rate / 3600:.0f} hours; convert it to WAV, or cut it")
    if aside is not None:
        aside.write(b"".join(part.tobytes() for part in parts))
        aside.flush()
        samples: np.ndarray = np.memmap(aside, dtype=np.float32, mode="r")
    else:
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def cut(first: int, last: int) -> Blocks:
        yield np.array(samples[first:last])

    return Sound(AudioInfo(len(samples), rate, channels, decoder, more=more), cut)


def _identity(recording: Any) -> Any:
    held = _held(recording)
    if isinstance(held, (bytes, bytearray, memoryview)):
        return hashlib.sha256(held).hexdigest()
    state = os.stat(held)
    return os.path.abspath(held), state.st_mtime_ns, state.st_size


# --- kinds of recordings and their errors ------------------------------------------------------------------------


def _held(recording: Any) -> Any:
    if isinstance(recording, dict):
        return recording["bytes"] if recording.get("bytes") is not None else recording.get("path")
    return recording


@contextmanager
def _byte_stream(recording: Any) -> Iterator[Any]:
    held = _held(recording)
    if isinstance(held, (bytes, bytearray, memoryview)):
        yield io.BytesIO(held)
    elif isinstance(held, (str, os.PathLike)) and str(held):
        if os.path.exists(held) and not os.path.isfile(held):  # opening a pipe would block forever
            raise DataError(f"{held}: is a folder or device; name the file, not its folder")
        with open(held, "rb") as file:
            yield file
    else:
        kind = "nothing" if held is None or held == "" else f"{type(held).__name__}"
        raise DataError(f"the recording: there is {kind} where a path or the bytes of a file should be")


@contextmanager
def _as_file(recording: Any) -> Iterator[str]:
    """Yield the path of a recording, for a program that only takes paths."""
    held = _held(recording)
    if not isinstance(held, (bytes, bytearray, memoryview)):
        yield os.path.abspath(held)
        return
    with tempfile.TemporaryDirectory(prefix="sft-hf-") as folder:  # Windows cannot reopen a NamedTemporaryFile
        path = os.path.join(folder, "recording")
        with open(path, "wb") as file:
            file.write(held)
        yield path


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise DataError(f"{name}: cannot be decoded: {_reason(error)}") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: {no_such_file(name)}") from error
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise StorageError(f"{name}: cannot be read: {error.strerror}") from error
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rpartition(": ")[2][:200]
