"""Names that are local files and folders, Hub ids, or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from demo_wheel import refusal, run_python

from sft_hf.core.errors import StorageError
from sft_hf.core.sources import sources
from sft_hf.core.sources.sources import Source, resolve


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
    assert "is a link to a file that does not exist" in refusal("broken.csv")


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


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2", "a/b.c", "_x/y_"])
def test_hub_id(name: str) -> None:
    source = resolve(name, revision="abc123")
    assert source == Source(name, "hub", None, "abc123", None, served_by="hub", offline=True)  # as conftest.py says
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


def test_a_misspelled_folder_is_suggested() -> None:
    Path("my trash").mkdir()
    message = refusal("my trsh", what="data set", key="data")
    assert "did you mean 'my trash'?" in message and "./my-data" in message and "bert" not in message
    assert "did you mean" not in refusal("no such thing")


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
import sys, sft_hf.core.sources.sources
print({"torch", "transformers", "huggingface_hub", "filelock", "pickle"} & set(sys.modules))
"""
    process = run_python(code)
    said = process.communicate(timeout=60)
    assert said == ("set()\n", "")
