"""Wheels that are refused: hostile, oversized or damaged entries, and paths that are not in them."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_wheel import Entries, cached, no_pip, refusal

from sft_hf.core.sources import wheels
from sft_hf.core.sources.sources import resolve

pytestmark = pytest.mark.usefixtures("quick_pip")


def entry(name: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.flag_bits = flags
    return info


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("demo/modle", "did you mean demo/model?"),
        ("dmo/model/config.json", "did you mean demo?"),
        ("demo/model/confg.json", "did you mean demo/model/config.json?"),
        ("demo/train.csv/x", "There are none"),
    ],
)
def test_missing_inner_path(asked: str, hint: str, sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hint in refusal(f"pypi://demo==1.0/{asked}", sha256=sha)
    no_pip(monkeypatch)  # the pinned wheel is kept for the corrected name
    assert resolve("pypi://demo==1.0/demo/model", sha256=sha).path


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ([("../out.txt", b"")], "'..'"),
        ([("demo/../../out.txt", b"")], "'..'"),
        ([("demo//x", b"")], "empty"),
        ([("/out.txt", b"")], "absolute"),
        ([("C:/out.txt", b"")], "absolute"),
        ([("demo\\out.txt", b"")], "backslash"),
        ([("demo/a\nb", b"")], "control character"),
        ([(entry("demo/link", stat.S_IFLNK | 0o777), b"/etc")], "link"),
        ([(entry("demo/pipe", stat.S_IFIFO | 0o644), b"")], "special file"),
        ([("demo/model", b"")], "both a file and a folder"),
    ],
)
def test_hostile_entry(extra: Entries, why: str, make_wheel: Callable[..., str], tmp_path: Path) -> None:
    sha = make_wheel(extra)
    message = refusal("pypi://demo==1.0/demo/train.csv", sha256=sha)
    assert "wheel of demo==1.0 is refused" in message and why in message
    assert not cached(tmp_path) and not list(tmp_path.rglob("out.txt"))


def test_duplicate_entry(make_wheel: Callable[..., str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        sha = make_wheel([("demo/train.csv", b"other")])
    assert "'demo/train.csv' is listed twice" in refusal("pypi://demo==1.0/demo/train.csv", sha256=sha)
    assert not cached(tmp_path)


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_ENTRIES"])
def test_oversize(limit: str, sha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, limit, 5)
    assert "5 is the limit" in refusal("pypi://demo==1.0/demo/train.csv", sha256=sha)
    assert not cached(tmp_path)


def test_more_bytes_than_declared(make_wheel: Callable[..., str], tmp_path: Path) -> None:
    # A megabyte and more that the headers declare as ten bytes.
    make_wheel([("demo/bomb.bin", b"0" * 1_234_567)])
    path = tmp_path / "links" / "demo-1.0-py3-none-any.whl"
    raw = bytearray(path.read_bytes())
    raw = raw.replace((1_234_567).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(raw)
    sha = hashlib.sha256(raw).hexdigest()
    assert "corrupt" in refusal("pypi://demo==1.0/demo/bomb.bin", sha256=sha)
    assert not list((tmp_path / "cache").rglob("bomb.bin"))


def test_entry_kinds_that_are_not_read() -> None:
    assert "encrypted" in str(wheels._unsafe_entry(entry("a", flags=1)))
    odd = entry("a")
    odd.compress_type = zipfile.ZIP_LZMA
    assert "compression" in str(wheels._unsafe_entry(odd))
    assert "control" in str(wheels._unsafe_entry(entry("a\0b")))
