"""scripts/release refuses what must not be published, before it builds anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sft_hf

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def repository(tmp_path):
    """A repository of a few files with this script."""
    for name in ("scripts", "sft_hf"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "scripts" / "release", tmp_path / "scripts")
    (tmp_path / "sft_hf" / "__init__.py").write_text('__version__ = "9.1.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [9.1.0] - 2026-12-01\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder):
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Change")


def refusal(folder, *arguments):
    """What the script says when it refuses."""
    done = subprocess.run(
        ["bash", "scripts/release", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (folder / "dist").exists()
    return done.stderr


def test_uncommitted_changes(repository):
    (repository / "new.txt").touch()
    assert "uncommitted" in refusal(repository)


def test_a_version_that_the_changelog_has_not(repository):
    (repository / "CHANGELOG.md").write_text("# Changelog\n\n## [9.0.0]\n")
    commit(repository)
    assert "9.1.0" in refusal(repository)


def test_a_version_that_is_tagged_elsewhere(repository):
    git(repository, "tag", "v9.1.0")
    (repository / "new.txt").touch()
    commit(repository)
    assert "tagged" in refusal(repository)


def test_no_version(repository):
    (repository / "sft_hf" / "__init__.py").write_text("")
    commit(repository)
    assert "names no version" in refusal(repository)


def test_an_argument_that_it_does_not_know(repository):
    assert "--uplaod" in refusal(repository, "--uplaod")


def test_the_version_is_in_one_place():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject
    assert not re.search(r"^version\s*=", pyproject, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", sft_hf.__version__)
    for name in ("Dockerfile", "constraints.txt", "scripts/release"):
        assert sft_hf.__version__ not in re.findall(r"sft.hf\S*?([\d.]+)", (ROOT / name).read_text(encoding="utf-8"))
