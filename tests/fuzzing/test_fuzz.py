"""Broken input of every kind, from a seed (see fuzz.py), ends with a line, never in a traceback, hang or swapping."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiers import long

KINDS = ("recipes", "rows", "images", "audio")
MAX_BYTES = 2_000_000_000


@pytest.fixture(scope="module")
def material(
    checkpoint, image_checkpoint, whisper_checkpoint, wav2vec2_checkpoint, make_image, speech_clip, tmp_path_factory
):
    """Checkpoints, and good files in every format that is broken later."""
    import soundfile

    folder = tmp_path_factory.mktemp("fuzz")
    sources = {"text": checkpoint, "image": image_checkpoint, "speech": whisper_checkpoint, "ctc": wav2vec2_checkpoint}
    for name, source in sources.items():
        shutil.copytree(source, folder / name)
    save_formats(make_image("red", 1), make_image("blue", 2), folder / "images")
    (folder / "sounds").mkdir()
    clip = speech_clip("one two", 1)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64"):
        soundfile.write(folder / "sounds" / f"x.{suffix}", clip, 16_000)
    soundfile.write(folder / "sounds" / "x.opus", clip, 16_000, format="OGG", subtype="OPUS")
    for subtype in ("IMA_ADPCM", "MS_ADPCM", "ULAW", "GSM610", "FLOAT", "PCM_24"):
        soundfile.write(folder / "sounds" / f"{subtype}.wav", clip, 16_000, subtype=subtype)
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


def save_formats(picture, second, folder):
    """A picture in every format, mode and number of frames that is read."""
    from PIL import Image

    folder.mkdir()
    exif = Image.Exif()
    exif[274], exif[270] = 6, "words"
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "jp2", "avif"):
        picture.save(folder / f"x.{suffix}")
    for suffix in ("png", "jpg", "webp", "tif"):
        picture.save(folder / f"exif.{suffix}", exif=exif)
    for suffix in ("png", "gif", "webp", "tif"):
        picture.save(folder / f"frames.{suffix}", save_all=True, append_images=[second, picture])
    picture.save(folder / "progressive.jpg", progressive=True, icc_profile=b"garbage" * 30, comment=b"words")
    for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
        picture.save(folder / f"{compression}.tif", compression=compression)
    for mode, suffix in (("CMYK", "jpg"), ("P", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "webp"), ("L", "pgm")):
        picture.convert(mode).save(folder / f"{mode}.{suffix}")
    for mode in ("I;16", "I", "F"):
        picture.convert("L").convert(mode).save(folder / f"{mode.replace(';', '')}.tif")
    picture.convert("L").convert("I;16").save(folder / "I16.png")


def in_a_new_process(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )


def fuzz(kinds, first, count, folder, outcomes=("accepted", "refused"), start=in_a_new_process):
    """Run cases of some kinds in a process of their own; return what it found, once nothing has failed."""
    script = Path(__file__).with_name("fuzz.py")
    done = start(str(script), ",".join(kinds), str(first), str(count), str(folder))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    running = {kind: path.read_text() for kind in kinds if (path := folder / f"{kind}.case").exists()}
    assert done.returncode == 0, f"exit code {done.returncode} in {running}\n{done.stderr[-3000:]}"
    failed = [line for line in lines if "traceback" in line]
    assert not failed, "\n".join(f"{line['kind']} {line['case']}: {line['traceback']}" for line in failed[:3])
    for found in lines:
        assert set(found["outcomes"]) <= set(outcomes), found
        assert sum(found["outcomes"].values()) == count
        assert found["peak_bytes"] < MAX_BYTES, found
    assert [found["kind"] for found in lines] == list(kinds)
    return lines


@pytest.mark.parametrize(("count", "refused"), [(8, 1), long((24, 4))])
def test_broken_input(commands, material, count, refused):
    for found in fuzz(KINDS, 0, count, material, start=commands.python):
        assert found["outcomes"]["refused"] > refused and found["outcomes"].get("accepted", 0) > refused // 4, found


TABLES = ("valid accepted", "valid refused", "broken accepted", "broken refused")


@pytest.mark.long
def test_tables_are_read_as_they_were_written(tmp_path):
    (found,) = fuzz(("tables",), 0, 60, tmp_path, TABLES)
    accepted, refused = (found["outcomes"].get(f"valid {outcome}", 0) for outcome in ("accepted", "refused"))
    assert accepted > 20 and accepted >= 0.9 * (accepted + refused), found


@pytest.mark.long
def test_ten_thousand_tables(tmp_path, capsys):
    (found,) = fuzz(("tables",), 0, 10_000, tmp_path, TABLES)
    with capsys.disabled():
        print(f"\n{found}")
    accepted, refused = (found["outcomes"][f"valid {outcome}"] for outcome in ("accepted", "refused"))
    assert accepted >= 0.9 * (accepted + refused), found


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_cases(kind, material, capsys):
    (found,) = fuzz([kind], 1000, 2500, material)
    with capsys.disabled():
        print(f"\n{found}")
