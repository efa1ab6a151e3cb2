"""The script that opens a folder of odd files as training does, and compares with other readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "scripts" / "odd_files.py"


def test_files_are_sorted_by_what_others_make_of_them(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "plain.jpg")
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 900)).save(folder / "thin.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "notes.txt").write_text("words")
    soundfile.write(folder / "tone.wav", np.sin(np.arange(8000) / 9), 16_000)
    command = [sys.executable, str(SCRIPT), str(folder), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = {name: result["is"] for name, result in json.loads((tmp_path / "found.json").read_text()).items()}
    assert found.pop("tone.wav") == "accepted" and found.pop("deep.png") in ("different", "accepted")
    assert found == {"plain.jpg": "accepted", "thin.png": "refused", "broken.png": "no file"}
    assert "thin.png" in done.stdout and "failed     0" in done.stdout
