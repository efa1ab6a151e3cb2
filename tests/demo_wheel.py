"""The wheel of demo-1.0 that tests of sources fetch with pip, and what is asked of `resolve`: no network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sft_hf.core.errors import SourceError
from sft_hf.core.sources import wheels
from sft_hf.core.sources.sources import resolve

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "demo/__init__.py": b"open('RAN', 'w').close()\n",
    "demo/model/config.json": b"{}",
    "demo/model/vocab/a.txt": b"a\n",
    "demo/model-large/config.json": b"[]",
    "demo/train.csv": b"text,label\nhello,1\n",
}
INFO = "demo-1.0.dist-info"
Entries = list[tuple[zipfile.ZipInfo | str, bytes]]


def write_wheel(folder: Path, extra: Entries | None = None, version: str = "1.0") -> str:
    """Write demo's wheel with some more entries into a folder, and return its SHA-256."""
    info = f"demo-{version}.dist-info"
    entries: Entries = [*FILES.items(), *(extra or [])]
    entries += [
        (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: demo\nVersion: {version}\n".encode()),
        (f"{info}/WHEEL", b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (f"{info}/RECORD", b""),
    ]
    path = folder / f"demo-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(name: str, error: type[Exception] = SourceError, **options: str) -> str:
    """The message that `resolve` raises, which is always one line."""
    with pytest.raises(error) as caught:
        resolve(name, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def cached(tmp_path: Path) -> list[str]:
    """Every file in the cache but the locks."""
    root = tmp_path / "cache"
    files = (path for path in root.rglob("*") if not path.is_dir() and path.suffix != ".lock")
    return sorted(str(path.relative_to(root)) for path in files)


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(wheels, "_pip", fail)


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
