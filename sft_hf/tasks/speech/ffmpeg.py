"""Decoding by ffmpeg, in a separate process: MPEG-4, AMR, WMA, video and other files that libsndfile cannot read.

ffmpeg can only read the file itself: no network, no playlists that name other files, no standard input.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sft_hf.core.errors import DataError

SILENT_SECONDS = 60.0  # without output, after which the process is killed
_BLOCK_BYTES = 1 << 22
_HEADER = 24

# Formats that can be detected from the content. Left out are playlists (hls, concat), which name other files, and
# formats without a header (raw samples, bare AMR), since noise would be read as speech.
_FORMATS = (
    "aac,ac3,adx,aiff,amr,ape,asf,asf_o,ast,au,avi,caf,dsf,dts,dtshd,eac3,f4v,flac,flv,gxf,ircam,live_flv,matroska,webm,mlp,"
    "mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,oma,ogg,pvf,qcp,rm,rso,sds,sox,shn,svx,tak,tta,"
    "truehd,voc,vqf,w64,wav,wsaud,wtv,wv,xwma"
)


_HEADERLESS = {".gsm": "gsm", ".g722": "g722"}
"""Formats without a header by file name ending: only such an ending selects them."""


@contextmanager
def ffmpeg_blocks(path: str, name: str, refusal: str) -> Iterator[tuple[int, int, Iterator[np.ndarray]]]:
    """Yield (rate, channels, blocks): float32 [frames, channels] of the first audio stream of a file.

    Args:
        path: absolute path of the file.
        name: the recording's, for messages.
        refusal: why libsndfile does not read it, for messages.

    Raises DataError if ffmpeg is not installed or does not read the file either.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise DataError(
            f"{name}: is not a recording that libsndfile reads ({refusal}); WAV, FLAC, MP3 and OGG are. Install "
            "ffmpeg to read M4A, AMR, WMA and video files, or convert it"
        )
    command = [program, "-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", "file"]
    headerless = _HEADERLESS.get(os.path.splitext(name)[1].lower())
    command += ["-f", headerless] if headerless else ["-format_whitelist", _FORMATS]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-vn", "-sn", "-dn"]
    command += ["-c:a", "pcm_f32be", "-f", "au", "pipe:1"]  # AU: a header of 24 bytes, then only samples
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watch = _Watch(process)
    try:
        header = watch.read(_HEADER)
        if not header and watch.lacks_sound():
            raise DataError(f"{name}: holds no sound, only video or pictures; leave it out")
        if len(header) < _HEADER or header[:4] != b".snd":
            raise DataError(
                f"{name}: is not a recording that can be read ({watch.problem(refusal)}); WAV, FLAC, MP3 and OGG are"
            )
        offset, _, _, rate, channels = struct.unpack(">5I", header[4:])
        watch.read(offset - _HEADER)
        yield rate, channels, _blocks(watch, channels, name, refusal)
    finally:
        watch.close()


def _blocks(watch: _Watch, channels: int, name: str, refusal: str) -> Iterator[np.ndarray]:
    size = 4 * channels
    found = False
    while data := watch.read(_BLOCK_BYTES // size * size):
        found = True
        yield np.frombuffer(data[: len(data) // size * size], dtype=">f4").astype(np.float32).reshape(-1, channels)
    if not found:
        raise DataError(f"{name}: holds no audio that can be read ({watch.problem(refusal)})")


class _Watch:
    """Reads the output of a process, kills it after `SILENT_SECONDS` without output, and keeps its first error."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.late = process, False
        self._said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        stream: Any = self.process.stderr
        while line := stream.read(4096):
            self._said = self._said or line  # the first error is the cause, and there may be endless others

    def read(self, count: int) -> bytes:
        def give_up() -> None:
            self.late = True
            self.process.kill()

        timer = threading.Timer(SILENT_SECONDS, give_up)
        timer.start()
        try:
            stream: Any = self.process.stdout
            data: bytes = stream.read(count)
            return data
        finally:
            timer.cancel()

    def lacks_sound(self) -> bool:
        """Whether the file has no audio stream; call it after the output has ended."""
        self._ended()
        return b"matches no streams" in self._said

    def _ended(self) -> None:
        self.process.wait()
        self._listener.join(timeout=5)

    def problem(self, otherwise: str) -> str:
        """Return a one-line description of the error."""
        if self.late:
            return f"ffmpeg gave nothing for {SILENT_SECONDS:g} s"
        self._ended()
        lines = [line.strip() for line in self._said.decode("utf-8", errors="replace").splitlines() if line.strip()]
        said = lines[-1].rpartition(": ")[2] if lines else ""
        return f"libsndfile: {otherwise}; ffmpeg: {said[:200] or 'no audio'}"

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None and stream is self.process.stdout:
                stream.close()
        self.process.wait()
        self._listener.join(timeout=5)
        if self.process.stderr is not None:
            self.process.stderr.close()
