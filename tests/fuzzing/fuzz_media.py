"""Broken images and recordings, for fuzz.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

from fuzz_data import prepared
from mutations import mutate_bytes

PATHS = (
    "",
    " ",
    "nothing.png",
    "..",
    ".",
    "/",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "a\x00b",
    "x" * 5000,
    "~",
    "*",
)
PATHS += ("http://localhost/x.png", "data:,x", "1e999", "\u202e", "\udcff".encode("utf-8", "replace").decode(), "fifo")


def lying(content: bytes, generator: random.Random, truths: tuple[int, ...]) -> bytes:
    """Replace a number that the header gives, in whatever form it stands there, by another."""
    found = []
    for form in ("<H", ">H", "<I", ">I", "<Q", ">Q"):
        for truth in truths:
            with contextlib.suppress(struct.error):
                coded = struct.pack(form, truth)
                place = content.find(coded, 0, 4096)
                while place >= 0:
                    found.append((place, form))
                    place = content.find(coded, place + 1, 4096)
    if not found:
        return mutate_bytes(content, generator)
    out = bytearray(content)
    for place, form in generator.sample(found, min(len(found), generator.choice((1, 1, 2, 3)))):
        top = 256 ** struct.calcsize(form) - 1
        number = generator.choice((0, 1, 2, 7, 255, 8000, 65_535, 1_000_000, 10**9, top // 2, top // 2 + 1, top))
        struct.pack_into(form, out, place, min(number, top))
    return bytes(out)


def right_checksums(content: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, so that the decoder believes them."""
    out, place = bytearray(content), 8
    while place + 12 <= len(out):
        (size,) = struct.unpack_from(">I", out, place)
        if place + 12 + size > len(out):
            break
        struct.pack_into(">I", out, place + 8 + size, zlib.crc32(out[place + 4 : place + 8 + size]))
        place += 12 + size
    return bytes(out)


def large_image(generator: random.Random) -> tuple[bytes, str]:
    """A small file that holds a large picture: nothing about it is broken."""
    from PIL import Image

    mode, kind = generator.choice(
        (("1", "png"), ("L", "png"), ("P", "png"), ("I;16", "png"), ("F", "tiff"), ("L", "webp"))
    )
    size = generator.choice(((8000, 8000), (7999, 8000), (8001, 8000), (20_000, 120), (16_000, 16_000)))
    if kind == "webp" or (mode != "1" and size[0] == 16_000):
        size = (4000, 4000)
    sink = io.BytesIO()
    options = {"compression": "tiff_lzw"} if kind == "tiff" else {}
    Image.new(mode, size, 1 if mode == "1" else 0).save(sink, kind, **options)
    return sink.getvalue(), kind


def media_table(folder: Path, content: bytes, names: list[str], kind: str, generator: random.Random) -> None:
    """A table of paths, odd ones among them; or a Parquet file that holds the files' bytes, as those of the Hub do."""
    target = {"image": "label", "audio": "transcription"}[kind]
    values = ["sport", "money"] if kind == "image" else ["one two", "two one"]
    if generator.random() < 0.5:
        lines = [json.dumps({kind: name, target: values[index % 2]}) for index, name in enumerate(names)]
        lines += [json.dumps({kind: path, target: values[0]}) for path in generator.sample(PATHS, 2)]
        (folder / "train.jsonl").write_text("\n".join(lines))
        if "fifo" in "".join(lines):
            os.mkfifo(folder / "fifo")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[Any] = [{"bytes": Path(name).read_bytes(), "path": name} for name in names]
    odd = (None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": None, "path": "a\x00b"})
    held += [{"bytes": content, "path": generator.choice(("x.raw", None, "", "/dev/zero"))}, generator.choice(odd)]
    made = pa.table({kind: held, target: [values[index % 2] for index in range(len(held))]})
    if generator.random() < 0.7:
        media = {"_type": kind.capitalize()}
        features = {kind: media, target: {"dtype": "string", "_type": "Value"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, folder / "train.parquet")


def images(generator: random.Random, folder: Path, tools: Path) -> str:
    """A folder of images, one of them broken."""
    path = generator.choice(sorted((tools / "images").iterdir()))
    content, kind = path.read_bytes(), path.suffix[1:]
    way = generator.random()
    if way < 0.45:
        content = mutate_bytes(content, generator, header=generator.choice((48, 96, 600)))
    elif way < 0.9:
        content = lying(content, generator, (40, 32, 39, 31))
        if kind in ("ppm", "pgm"):
            sizes = b"%d %d" % tuple(generator.choice((0, 1, 40, 8000, 10**9, 10**30)) for _ in range(2))
            content = content.replace(b"40 32", sizes, 1)
    elif way < 0.92:
        content, kind = large_image(generator)
    if kind == "png" and generator.random() < 0.8:
        content = right_checksums(content)
    settings: dict[str, Any] = {"name": "image_classification"}
    if generator.random() < 0.3:
        settings["augmentation"] = generator.choice(("trivial", "rand"))
    on_bad_row = generator.choice(("stop", "skip", "skip"))
    names = [str(path) for path in sorted((tools / "pictures").rglob("*.png"))]
    if generator.random() < 0.2:
        media_table(folder, content, names, "image", generator)
        return prepared(tools, "image", generator, settings, name=str(folder), on_bad_row=on_bad_row)
    for name in ("cat", "dog"):
        shutil.copytree(tools / "pictures" / name, folder / "train" / name)
    suffix = kind if generator.random() < 0.7 else generator.choice(("png", "jpg", "txt", "webp"))
    (folder / "train" / "cat" / f"broken.{suffix}").write_bytes(content)
    return prepared(tools, "image", generator, settings, name=str(folder), on_bad_row=on_bad_row)


def odd_recording(generator: random.Random) -> bytes:
    """A recording that is whole, and odd: many channels, other rates, very short, long, or not finite."""
    import numpy as np
    import soundfile

    rate = generator.choice((1, 999, 1000, 8000, 11_025, 44_100, 96_000, 192_000, 655_350))
    channels = generator.choice((1, 2, 8, 255))
    frames = generator.choice((1, 2, 100, rate // 2 + 1, rate * 2, rate * 31, rate * 300))
    frames = max(1, min(frames, 8_000_000 // channels))
    samples = np.zeros((frames, channels), np.float32)
    samples[:: max(1, frames // 100)] = generator.choice((0.0, 0.5, 1e30, float("nan"), float("inf")))
    form, kind = generator.choice((("WAV", "FLOAT"), ("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("WAV", "DOUBLE")))
    sink = io.BytesIO()
    with contextlib.suppress(soundfile.SoundFileError, ValueError):
        soundfile.write(sink, np.nan_to_num(samples) if kind == "PCM_16" else samples, rate, format=form, subtype=kind)
    return sink.getvalue()


def audio(generator: random.Random, folder: Path, tools: Path) -> str:
    """A folder of recordings, one of them broken."""
    path = generator.choice(sorted((tools / "sounds").iterdir()))
    content, kind = path.read_bytes(), path.suffix[1:]
    way = generator.random()
    if way < 0.4:
        content = mutate_bytes(content, generator, header=generator.choice((48, 96, 600)))
    elif way < 0.6:
        frames = (len(content) - 44) // 2
        content = lying(content, generator, (16_000, 1, 2, 16, 32_000, 128_000, frames, 2 * frames, len(content) - 8))
    elif way < 0.75:
        content, kind = lying_wave(generator), "wav"
    elif way < 0.9:
        content, kind = odd_recording(generator), "wav"
    settings: dict[str, Any] = {"name": "speech_recognition"}
    if generator.random() < 0.3:
        settings |= {"speed_factors": [0.5, 2.0], "noise_probability": 0.5}
    if generator.random() < 0.2:
        settings["max_seconds"] = generator.choice((0.001, 1.0, 1e9, 1e308))
    checkpoint = generator.choice(("speech", "ctc"))
    names = sorted(str(path) for path in (tools / "recordings").glob("*.wav"))
    on_bad_row = generator.choice(("stop", "skip", "skip"))
    if generator.random() < 0.2:
        media_table(folder, content, names, "audio", generator)
        return prepared(tools, checkpoint, generator, settings, name=str(folder), on_bad_row=on_bad_row)
    shutil.copytree(tools / "recordings", folder / "train")
    suffix = kind if generator.random() < 0.8 else generator.choice(("wav", "flac", "ogg", "txt", "raw"))
    (folder / "train" / f"broken.{suffix}").write_bytes(content)
    text = generator.choice(("one two", "one two", "x " * 200, "\u202e", "é", "|", "\x00"))
    with open(folder / "train" / "metadata.csv", "a") as file:
        file.write(f"broken.{suffix},{text}\n")
    return prepared(tools, checkpoint, generator, settings, name=str(folder), on_bad_row=on_bad_row)


def lying_wave(generator: random.Random) -> bytes:
    """A WAV file whose header says another rate, width, length or number of channels than there is."""
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\0\1" * 3000)
    content = bytearray(sink.getvalue())
    for _ in range(generator.randrange(1, 4)):
        place, form = generator.choice(
            ((4, "I"), (16, "I"), (20, "H"), (22, "H"), (24, "I"), (28, "I"), (32, "H"), (34, "H"), (40, "I"))
        )
        top = 2 ** (32 if form == "I" else 16) - 1
        struct.pack_into(
            "<" + form,
            content,
            place,
            generator.choice((0, 1, 3, 8, 24, 32, 64, 255, 44_100 % (top + 1), top // 2, top)),
        )
    return bytes(content)
