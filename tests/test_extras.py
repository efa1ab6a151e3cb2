"""The base package works without what training needs, and says which extra is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft_hf.core.extras import TRAINING, how_to_install

ROOT = Path(__file__).resolve().parents[1]
BASE_ONLY = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(TRAINING)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the packages of the extra `train` cannot be imported."""
    return subprocess.run([sys.executable, "-c", BASE_ONLY + code], capture_output=True, text=True, check=False)


def test_commands_that_train_nothing_need_no_training_packages():
    done = run(
        "from sft_hf.cli import run\n"
        "for line in ('--help', '--version', 'recipes', 'show text', 'schema', 'finetune --help'):\n"
        "    assert run(line.split()) == 0, line\n"
        "from sft_hf import load_recipe\n"
        "import sft_hf.data.tables.files\n"
        "assert load_recipe('image').task.name == 'image_classification'"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["finetune text", "predict runs/text words", "check image"])
def test_a_command_that_needs_them_names_the_extra(command):
    done = run(f"import sys; from sft_hf.cli import run; sys.exit(run({command.split()!r} + ['--json']))")
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "sft-hf[train]" in lines[0]
    assert json.loads(done.stdout)["exit_code"] == 2


def test_a_python_program_is_told_too():
    done = run("import sft_hf; sft_hf.finetune")
    assert done.returncode == 1
    assert "sft-hf[train]" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: sft_hf.finetune")


def test_another_missing_module_is_a_bug():
    assert how_to_install(ModuleNotFoundError("No module named 'sft_hf.gone'", name="sft_hf.gone")) is None
    assert how_to_install(ImportError("cannot import name 'x' from 'torch'")) is None


def test_the_extra_is_what_pyproject_says():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^train = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    names = {name.replace("-", "_") for name in re.findall(r'^ *"([a-z0-9-]+)>=', listed, re.MULTILINE)}
    assert {name.replace("scikit_learn", "sklearn") for name in names} == TRAINING
    assert all(importlib.util.find_spec(name) for name in TRAINING)
    for extra in ("image", "peft", "speech"):
        assert re.search(rf'^{extra} = \[\n +"sft-hf\[train\]"', text, re.MULTILINE), extra
