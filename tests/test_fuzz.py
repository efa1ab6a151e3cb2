"""Broken input of every kind, from a seed (see fuzz.py), ends with a line, never in a traceback, hang or swapping."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("recipes", "rows", "images", "audio")
MAX_BYTES = 2_000_000_000


@pytest.fixture(scope="module")
def material(checkpoint, image_checkpoint, whisper_checkpoint, make_image, speech_clip, tmp_path_factory):
    """Checkpoints, and good files in every format that is broken later."""
    import soundfile

    folder = tmp_path_factory.mktemp("fuzz")
    for name, source in (("text", checkpoint), ("image", image_checkpoint), ("speech", whisper_checkpoint)):
        shutil.copytree(source, folder / name)
    (folder / "formats").mkdir()
    picture = make_image("red", 1)
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"):
        picture.save(folder / "formats" / f"x.{suffix}")
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(folder / "formats" / f"x.{suffix}", speech_clip("one two", 1), 16_000)
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(6):
            make_image(colour, index).save(folder / "pictures" / name / f"{index}.png")
    (folder / "recordings").mkdir()
    lines = ["file_name,transcription"]
    for index in range(10):
        soundfile.write(folder / "recordings" / f"{index}.wav", speech_clip("one two", index), 16_000)
        lines.append(f"{index}.wav,one two")
    (folder / "recordings" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def fuzz(kind, first, count, folder):
    """Run cases in a process of their own; return the last line, once nothing has failed."""
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, str(first), str(count), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    *failed, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"{last}\n{done.stderr[-3000:]}"
    assert not failed, "\n".join(
        f"{kind} {json.loads(line)['case']}: {json.loads(line)['traceback']}" for line in failed[:3]
    )
    found = json.loads(last)
    assert set(found["outcomes"]) <= {"accepted", "refused"}, found
    assert sum(found["outcomes"].values()) == count
    assert found["peak_bytes"] < MAX_BYTES, found
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_broken_input(kind, material):
    found = fuzz(kind, 0, 60, material)
    assert found["outcomes"].get("refused", 0) > 10


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_cases(kind, material, capsys):
    found = fuzz(kind, 1000, 2500, material)
    with capsys.disabled():
        print(f"\n{kind}: {found}")
