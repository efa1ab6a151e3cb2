"""Where checkpoints and data come from: tiny wheels and folders made here, with no network."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import logging
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sft_hf import sources, wheels
from sft_hf.errors import SourceError, StorageError
from sft_hf.sources import Source, resolve

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


# --- what a wheel holds


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


@pytest.mark.parametrize("slash", ["", "/"])
def test_folder_in_wheel_is_all_that_is_unpacked(sha: str, slash: str) -> None:
    path = resolve(f"pypi://demo==1.0/demo/model{slash}", sha256=sha).path
    assert path
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert files == {"config.json": b"{}", "vocab/a.txt": b"a\n"}
    assert [child.name for child in path.parent.iterdir()] == ["model"]


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


def test_name_is_normalised_for_the_cache(sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve("pypi://demo==1.0/demo/model", sha256=sha)
    no_pip(monkeypatch)
    assert resolve("pypi://Demo==1.0/demo/model", sha256=sha).path == first.path


def test_empty_folder_and_folder_entries(make_wheel: Callable[..., str]) -> None:
    sha = make_wheel([("demo/empty/", b"")])
    path = resolve("pypi://demo==1.0/demo/empty", sha256=sha).path
    assert path and path.is_dir() and not list(path.iterdir())


# --- the cache


def test_cache_hit_needs_no_pip(sha: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = resolve("pypi://demo==1.0/demo/model", sha256=sha)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve("pypi://demo==1.0/demo/model", sha256=sha) == first
    other = resolve("pypi://demo==1.0/demo/train.csv", sha256=sha)  # from the wheel that was kept
    assert other.path and other.path.is_file()


def test_changed_kept_wheel_is_fetched_again(sha: str, tmp_path: Path) -> None:
    resolve("pypi://demo==1.0/demo/model", sha256=sha)
    kept = tmp_path / "cache" / "pypi" / "demo-1.0" / sha / "wheel.whl"
    kept.write_bytes(b"changed")
    source = resolve("pypi://demo==1.0/demo/train.csv", sha256=sha)
    assert source.path and source.path.read_bytes() == FILES["demo/train.csv"]
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == sha


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


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RESOLVE = """
import logging, sys
from sft_hf.sources import resolve
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


# --- pins


def test_wrong_sha(sha: str, tmp_path: Path) -> None:
    message = refusal("pypi://demo==1.0/demo/model", sha256="0" * 64)
    assert "model.sha256" in message and "0" * 64 in message and f"write sha256: {sha}" in message
    assert not cached(tmp_path)


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


# --- wheels that are refused


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


def entry(name: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.flag_bits = flags
    return info


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
    assert "'demo/train.csv' is there twice" in refusal("pypi://demo==1.0/demo/train.csv", sha256=sha)
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
    assert "damaged" in refusal("pypi://demo==1.0/demo/bomb.bin", sha256=sha)
    assert not list((tmp_path / "cache").rglob("bomb.bin"))


def test_entry_kinds_that_are_not_read() -> None:
    assert "encrypted" in str(wheels._unsafe_entry(entry("a", flags=1)))
    odd = entry("a")
    odd.compress_type = zipfile.ZIP_LZMA
    assert "compression" in str(wheels._unsafe_entry(odd))
    assert "control" in str(wheels._unsafe_entry(entry("a\0b")))


# --- what pip says


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


@pytest.mark.parametrize("no_binary", [None, ":all:"])
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
    monkeypatch.setattr(wheels, "_pip", lambda arguments, stage: done)
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
    assert wheels.parse_name(f"pypi://a.b_c-d=={version}/x/y", "model", "checkpoint").version == version


def test_version_that_looks_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pip takes "demo==1+a.whl" for a file in the working folder.
    Path("demo==1+a.whl").write_bytes(b"")
    assert "No matching distribution" in refusal("pypi://demo==1+a.whl/x", sha256="0" * 64)


# --- disks and permissions


def test_disk_full(sha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        message = refusal("pypi://demo==1.0/demo/model", StorageError, sha256=sha)
    assert "No space left" in message and str(tmp_path / "cache") in message
    assert resolve("pypi://demo==1.0/demo/model", sha256=sha).path


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


# --- local names


def test_local_file_and_folder(tmp_path: Path) -> None:
    Path("data.csv").write_text("a\n")
    Path("models").mkdir()
    for name in ("data.csv", "./data.csv", "models", "models/", "./models"):
        source = resolve(name)
        expected = tmp_path / "work" / name
        assert source == Source(name, "local", expected, None, None)
        assert source.location() == str(expected)


def test_home_folder(tmp_path: Path) -> None:
    (tmp_path / "home" / "model").mkdir(parents=True)
    assert resolve("~/model").path == tmp_path / "home" / "model"


def test_local_folder_wins_over_the_hub() -> None:
    Path("google/tiny").mkdir(parents=True)
    assert resolve("google/tiny").kind == "local"
    assert resolve("google/other").kind == "hub"


def test_link_keeps_its_name(tmp_path: Path) -> None:
    Path("blob").write_text("x")
    Path("data.csv").symlink_to("blob")
    assert resolve("data.csv").path == tmp_path / "work" / "data.csv"
    Path("broken.csv").symlink_to("nothing")
    assert "is a link to what does not exist" in refusal("broken.csv")


@pytest.mark.parametrize("name", ["train.cvs/../trian.csv", "trian.csv", "./trian.csv", "TRIAN.CSV"])
def test_missing_local_file(name: str, tmp_path: Path) -> None:
    Path("train.csv").write_text("")
    Path("other").mkdir()
    message = refusal(name, what="data set", key="data")
    assert message.startswith(f"data: data set '{tmp_path}") and "does not exist" in message
    assert "Valid: other, train.csv" in message
    if name.endswith("csv"):
        assert "did you mean train.csv?" in message


@pytest.mark.parametrize("name", ["/no/such", "~/x", "a/b/c", "no/model.safetensors"])
def test_missing_local_folder(name: str) -> None:
    assert os.path.abspath(os.path.expanduser(name)) in refusal(name)


def test_local_sha(tmp_path: Path) -> None:
    Path("data.csv").write_bytes(b"a\n")
    Path("folder").mkdir()
    sha = hashlib.sha256(b"a\n").hexdigest()
    assert resolve("data.csv", sha256=sha.upper()).sha256 == sha
    message = refusal("data.csv", sha256="1" * 64, key="data")
    assert message.startswith("data.sha256 is 1111") and sha in message and "data.csv" in message
    assert "is a folder, which has no single hash" in refusal("folder", sha256=sha)


def test_local_file_on_a_failing_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    Path("data.csv").write_text("")
    monkeypatch.setattr(sources, "sha256_of", fail)
    assert "data.csv" in refusal("data.csv", StorageError, sha256="0" * 64)


# --- Hub ids and what is nothing


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2", "a/b.c", "_x/y_"])
def test_hub_id(name: str) -> None:
    source = resolve(name, revision="abc123")
    assert source == Source(name, "hub", None, "abc123", None)
    assert source.location() == name


def test_hub_id_rule_is_the_hubs() -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    candidates = [
        "a",
        "a/b",
        "-a",
        "a-",
        "a/-b",
        "a--b",
        "a..b",
        "a.git",
        ".a",
        "a/b.",
        "a b",
        "a_",
        "é",
        "x" * 97,
    ]
    for name in candidates:
        try:
            validate_repo_id(name)
            valid = True
        except HFValidationError:
            valid = False
        # The Hub's own rule lets letters beyond ASCII through, though no such repository can be made.
        assert bool(sources._HUB_ID.fullmatch(name)) == (valid and name.isascii()), name


@pytest.mark.parametrize("name", ["", " ", "a b", "user/", "-x", "a--b", "user/x\n", "a\0b", "x" * 5000])
def test_bad_name(name: str) -> None:
    message = refusal(name)
    assert "./my-model" in message and "Hub id (" in message and "pypi://some-dist==1.0/" in message


def test_sha_of_a_hub_id() -> None:
    message = refusal("google/tiny", sha256="0" * 64)
    assert "model.sha256" in message and "model.revision" in message


@pytest.mark.parametrize(
    "name", ["http://host/x.csv", "https://me:secret@host/x", "s3://b/x", "file:///x", "PYPI://demo==1/x"]
)
def test_plain_url(name: str) -> None:
    message = refusal(name)
    assert "a plain URL is not fetched" in message and "download it" in message
    assert "secret" not in message


def test_import_is_light() -> None:
    code = """
import sys, sft_hf.sources
print({"torch", "transformers", "huggingface_hub", "filelock", "pickle"} & set(sys.modules))
"""
    process = run_python(code)
    said = process.communicate(timeout=60)
    assert said == ("set()\n", "")
