"""The cache of unpacked wheels: hits, its place, two processes, a kill, full disks and permissions."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
from pathlib import Path

import pytest
from demo_wheel import FILES, no_pip, refusal, run_python
from filelock import FileLock

from sft_hf.core.errors import StorageError
from sft_hf.core.sources import wheels
from sft_hf.core.sources.sources import resolve


@pytest.mark.usefixtures("quick_pip")
def test_cache_hit_needs_no_pip(sha: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = resolve("pypi://demo==1.0/demo/model", sha256=sha)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve("pypi://demo==1.0/demo/model", sha256=sha) == first
    other = resolve("pypi://demo==1.0/demo/train.csv", sha256=sha)  # from the wheel that was kept
    assert other.path and other.path.is_file()


@pytest.mark.usefixtures("quick_pip")
def test_changed_kept_wheel_is_fetched_again(sha: str, tmp_path: Path) -> None:
    resolve("pypi://demo==1.0/demo/model", sha256=sha)
    kept = tmp_path / "cache" / "pypi" / "demo-1.0" / sha / "wheel.whl"
    kept.write_bytes(b"changed")
    source = resolve("pypi://demo==1.0/demo/train.csv", sha256=sha)
    assert source.path and source.path.read_bytes() == FILES["demo/train.csv"]
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == sha


@pytest.mark.usefixtures("quick_pip")
def test_unit_without_its_content_is_unpacked_again(sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve("pypi://demo==1.0/demo/train.csv", sha256=sha).path
    assert path
    path.unlink()
    no_pip(monkeypatch)
    assert resolve("pypi://demo==1.0/demo/train.csv", sha256=sha).path == path
    assert path.is_file()


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [("own", "shared", "own"), (None, "shared", "shared/sft-hf"), ("", "", "home/.cache/sft-hf")],
)
def test_cache_place(
    own: str | None, shared: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFT_HF_CACHE")
    if own is not None:
        monkeypatch.setenv("SFT_HF_CACHE", own and str(tmp_path / own))
    monkeypatch.setenv("XDG_CACHE_HOME", shared and str(tmp_path / shared))
    assert wheels.cache_root() == tmp_path / expected


RESOLVE = """
import logging, sys
from sft_hf.core.sources.sources import resolve
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
print(resolve(sys.argv[1], sha256=sys.argv[2]).path)
"""


def test_two_processes_fetch_once(sha: str, tmp_path: Path) -> None:
    name = "pypi://demo==1.0/demo/model"
    lock = tmp_path / "cache" / "pypi" / "demo-1.0.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        both = [run_python(RESOLVE, name, sha) for _ in range(2)]
        for process in both:  # both stand at the lock before either may go on
            assert process.stderr and process.stderr.readline().startswith("waiting for another process")
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == f"{resolve(name, sha256=sha).path}\n"
    assert sorted(log for _, log in said) == ["", "fetching demo==1.0\n"]


def test_killed_while_unpacking(sha: str, tmp_path: Path) -> None:
    killed = """
import os, shutil, signal
def half(source, target, size):
    target.write(source.read(1))
    target.flush()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copyfileobj = half
"""
    process = run_python(killed + RESOLVE, "pypi://demo==1.0/demo/model", sha)
    process.communicate(timeout=60)
    assert process.returncode == -9
    home = tmp_path / "cache" / "pypi" / "demo-1.0"
    assert list(home.glob("tmp-*/tree/demo/model/*"))
    path = resolve("pypi://demo==1.0/demo/model", sha256=sha).path
    assert path and (path / "config.json").read_bytes() == b"{}"
    assert not list(home.glob("tmp-*"))


@pytest.mark.usefixtures("quick_pip")
def test_disk_full(sha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        message = refusal("pypi://demo==1.0/demo/model", StorageError, sha256=sha)
    assert "No space left" in message and str(tmp_path / "cache") in message
    assert resolve("pypi://demo==1.0/demo/model", sha256=sha).path


def test_a_folder_that_is_deleted_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip does with its temporary folders."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"12345")
    scan = os.scandir

    def deleted(path: object) -> object:
        if str(path) == str(tmp_path / "b"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", deleted)
    assert wheels._bytes_below(tmp_path) == 5


@pytest.mark.usefixtures("quick_pip")
def test_cache_that_cannot_be_written(sha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("SFT_HF_CACHE", str(tmp_path / "file" / "cache"))
        message = refusal("pypi://demo==1.0/demo/model", sha256=sha)
    assert str(tmp_path / "file") in message and "SFT_HF_CACHE" in message
    monkeypatch.setattr(Path, "mkdir", denied)
    message = refusal("pypi://demo==1.0/demo/model", sha256=sha)
    assert "Permission denied" in message and str(tmp_path / "cache") in message and "SFT_HF_CACHE" in message
