"""A folder of wheels that is all that pip sees, and the wheel in it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_wheel import FILES, Entries


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip sees one folder of wheels and nothing else; the working folder and the cache are fresh."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for folder in ("links", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., str]:
    """Write demo-1.0's wheel with some more entries, and return its SHA-256."""

    def make(extra: Entries | None = None, version: str = "1.0") -> str:
        info = f"demo-{version}.dist-info"
        entries: Entries = [*FILES.items(), *(extra or [])]
        entries += [
            (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: demo\nVersion: {version}\n".encode()),
            (
                f"{info}/WHEEL",
                b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            ),
            (f"{info}/RECORD", b""),
        ]
        path = tmp_path / "links" / f"demo-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return make


@pytest.fixture
def sha(make_wheel: Callable[..., str]) -> str:
    return make_wheel()
