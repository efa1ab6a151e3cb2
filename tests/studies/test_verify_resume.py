"""The proof that a user can ask for proves something: it finds a resume that is not exact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "sft_hf", "verify-resume"]
# Dropout from a generator that runs on through the steps, and is not saved.
NOT_EXACT = """
import sft_hf.engine.step, torch
def seed_step(seed, step, rank):
    if not hasattr(torch, "_seeded"):
        torch._seeded = torch.manual_seed(seed)
sft_hf.engine.step.seed_step = seed_step
"""


def verify(recipe_file, tmp_path, kills, **environment):
    return subprocess.run(
        [*COMMAND, str(recipe_file), f"output_dir={tmp_path / 'runs' / 'tiny'}", "--steps", "100", "--kills", kills],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=tmp_path,
        check=False,
    )


def test_an_exact_resume_is_proved_and_leaves_nothing(recipe_file, tmp_path):
    done = verify(recipe_file, tmp_path, "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identical  ") == len(done.stdout.splitlines()) - 1
    assert "identical  model/model.safetensors" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("killed ")
    assert "killed after step" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_is_found(recipe_file, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NOT_EXACT)
    done = verify(recipe_file, tmp_path, "2", PYTHONPATH=str(site))
    assert done.returncode == 1, done.stdout
    assert "DIFFERENT  log.jsonl" in done.stdout
    assert "error: resuming is not exact: " in done.stderr


def test_remote_code_that_the_command_allows_is_allowed_in_its_runs_too(recipe_file, tmp_path):
    command = [
        *COMMAND,
        "--recipe",
        str(recipe_file),
        "model.trust_remote_code=true",
        f"output_dir={tmp_path / 'tiny'}",
    ]
    done = subprocess.run([*command, "--kills", "1"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert f"sft-hf finetune {recipe_file} model.trust_remote_code=true" in done.stderr  # the next command


def test_a_recipe_that_does_not_run_says_why(recipe_file, tmp_path):
    done = subprocess.run(
        [*COMMAND, str(recipe_file), "data.label_column=labl"],
        capture_output=True,
        text=True,
        cwd=Path(tmp_path),
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "labl" in done.stderr
