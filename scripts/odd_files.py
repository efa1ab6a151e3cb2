"""Opens every image or recording below a folder as in training, and compares the result with other readers.

    python scripts/odd_files.py FOLDER [--seconds 30] [--gigabytes 2] [--json results.json]

Images are compared with Pillow and, if installed, OpenCV; recordings with ffmpeg, if installed. Each file is opened in
a separate process, with limits on time and memory. Results:

    accepted   read, and similar to at least one of the other readers, or no other reader opens it
    different  read, but unlike all other readers: a different scale (16 bits, float), or a bug
    refused    rejected with a one-line error, although another reader opens it
    no file    rejected by all readers: notes, broken files
    failed     a traceback, or a limit was exceeded: a bug in sft-hf
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sft_hf.core.errors import SftError
from sft_hf.data.loading.image_folders import IMAGE_SUFFIXES
from sft_hf.data.loading.image_formats import is_picture
from sft_hf.tasks.image.images import open_image
from sft_hf.tasks.speech.audio import AUDIO_SUFFIXES, read_audio, resample

RATE = 16_000
MOST_GREY = 2.0  # mean difference (of 255) of equal images: JPEG decoders differ by this much
LEAST_LIKE = 0.99  # correlation of equal recordings


def main() -> None:
    """Compare all files and print the result."""
    parser = argparse.ArgumentParser(description="Open every image or recording below a folder, and compare.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=30, help="time limit for each file")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="memory limit for each file, beyond that at start")
    parser.add_argument("--json", type=Path, help="write {file: result} here")
    given = parser.parse_args()
    results = {}
    for path in sorted(path for path in given.folder.rglob("*") if path.is_file()):
        compare = kind_of(path)
        if compare is not None:
            name = str(path.relative_to(given.folder))
            results[name] = in_own_process(compare, path, given.seconds, int(given.gigabytes * 2**30))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    report(results)
    sys.exit(1 if any(result["is"] == "failed" for result in results.values()) else 0)


def report(results: dict[str, dict[str, Any]]) -> None:
    """Print the counts, and the names of all files that are not accepted."""
    for kind in ("accepted", "different", "refused", "no file", "failed"):
        chosen = {name: result for name, result in results.items() if result["is"] == kind}
        print(f"{kind:10s} {len(chosen)}")
        for name, result in chosen.items() if kind != "accepted" else ():
            print(f"    {name}: {result['why']}")


def kind_of(path: Path) -> Callable[[Path], dict[str, str]] | None:
    """Return the comparison function for a file; None if it is neither an image nor a recording."""
    if path.name.lower().endswith(AUDIO_SUFFIXES):
        return recording
    return picture if path.name.lower().endswith(IMAGE_SUFFIXES) or is_picture(path) else None


def in_own_process(compare: Callable[[Path], dict[str, str]], path: Path, seconds: int, memory: int) -> dict[str, Any]:
    """Return the result of `compare`, or a failure."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(seconds)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write to it
        try:
            found = compare(path)
        except BaseException:
            found = {"is": "failed", "why": " ".join(traceback.format_exc().split())[-500:]}
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    found = json.loads(said) if said else {"is": "failed", "why": f"ended with {os.waitstatus_to_exitcode(status)}"}
    return dict(found)


def picture(path: Path) -> dict[str, str]:
    """Compare an image with Pillow's and OpenCV's reading."""
    others = dict(other_pictures(path))
    try:
        own = np.asarray(open_image(str(path)), dtype=np.float32)
    except SftError as error:
        return refusal(error, list(others))
    distances = {
        name: float(np.abs(pixels - own).mean()) if pixels.shape == own.shape else np.inf
        for name, pixels in others.items()
    }
    if distances and min(distances.values()) > MOST_GREY:
        return {"is": "different", "why": ", ".join(f"{name} by {value:.1f}" for name, value in distances.items())}
    return {"is": "accepted", "why": ""}


def other_pictures(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and pixels, float32 [height, width, 3], of the readers that can open an image."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) or image
            yield "Pillow", np.asarray(upright.convert("RGB"), dtype=np.float32)
    except Exception:  # decoders raise many types of exceptions
        pass
    try:
        import cv2
    except ImportError:
        return
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is not None:
        yield "OpenCV", pixels[..., ::-1].astype(np.float32)


def recording(path: Path) -> dict[str, str]:
    """Compare a recording with ffmpeg's reading."""
    other = by_ffmpeg(path)
    try:
        own = read_audio(str(path), RATE)
    except SftError as error:
        return refusal(error, ["ffmpeg"] if other is not None else [])
    if other is None:
        return {"is": "accepted", "why": ""}
    both = min(len(own), len(other))
    first, second = own[:both], other[:both]
    silent = min(first.std(), second.std()) < 1e-6
    like = 1.0 if silent else float(np.corrcoef(first, second)[0, 1])
    if like < LEAST_LIKE or abs(len(own) - len(other)) > RATE // 20:
        lengths = f"{len(own) / RATE:.2f} and {len(other) / RATE:.2f} s"
        return {"is": "different", "why": f"correlation {like:.3f} with ffmpeg, {lengths}"}
    return {"is": "accepted", "why": ""}


def by_ffmpeg(path: Path) -> np.ndarray | None:
    """Return a recording decoded by ffmpeg, mono at `RATE`; None if this fails, or ffmpeg is not installed."""
    if shutil.which("ffmpeg") is None:
        return None
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32be"]
    data = subprocess.run([*command, "-f", "au", "pipe:1"], capture_output=True, check=False).stdout
    if len(data) <= 24 or data[:4] != b".snd":
        return None
    offset, _, _, rate, channels = struct.unpack(">5I", data[4:24])
    whole = data[offset:]
    samples = np.frombuffer(whole[: len(whole) // (4 * channels) * 4 * channels], dtype=">f4").astype(np.float32)
    if not len(samples) or not np.isfinite(samples).all():
        return None
    return resample(samples.reshape(-1, channels).mean(axis=1), rate, RATE)


def refusal(error: SftError, others: list[str]) -> dict[str, str]:
    """Return the result for a rejected file."""
    said = str(error)
    if "\n" in said:
        return {"is": "failed", "why": f"refused in several lines: {said[:300]!r}"}
    why = f"{said[:300]} (opened by {', '.join(others)})" if others else said[:300]
    return {"is": "refused" if others else "no file", "why": why}


if __name__ == "__main__":
    main()
