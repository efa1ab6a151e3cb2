"""The proof that a user can ask for proves something: it finds a resume that is not exact."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiers import long

# The command, whose runs are forked from it: the same processes, without their seconds of imports.
FORKING = """
import os, signal, subprocess, sys
from sft_hf.cli import run

class Popen:
    def __init__(self, command, stdout, stderr):
        assert command[:3] == [sys.executable, "-m", "sft_hf"] and stderr == subprocess.STDOUT
        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            code, subprocess.Popen = 99, real
            try:
                code = run(command[3:])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def poll(self, options=os.WNOHANG):
        if self.code is None:
            pid, status = os.waitpid(self.pid, options)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self):
        return self.poll(0)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

real, subprocess.Popen = subprocess.Popen, Popen
sys.exit(run(["verify-resume", *sys.argv[1:]]))
"""
# Dropout from a generator that runs on through the steps, and is not saved.
NOT_EXACT = """
import sft_hf.engine.step, torch
def seed_step(seed, step, rank):
    if not hasattr(torch, "_seeded"):
        torch._seeded = torch.manual_seed(seed)
sft_hf.engine.step.seed_step = seed_step
"""


def real(commands, tmp_path, *arguments):
    command = [sys.executable, "-m", "sft_hf", "verify-resume", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)


def forked(commands, tmp_path, *arguments, before=""):
    return commands.python("-c", before + FORKING, *arguments, cwd=tmp_path)


@pytest.mark.parametrize("start", [forked, long(real)])
def test_an_exact_resume_is_proved_and_leaves_nothing(commands, recipe_file, tmp_path, start):
    done = start(
        commands, tmp_path, recipe_file, f"output_dir={tmp_path / 'runs' / 'tiny'}", "--steps=100", "--kills=1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identical  ") == len(done.stdout.splitlines()) - 1
    assert "identical  model/model.safetensors" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("killed ")
    assert "killed after step" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_is_found(commands, recipe_file, tmp_path):
    options = (f"output_dir={tmp_path / 'tiny'}", "--steps=100", "--kills=2")
    done = forked(commands, tmp_path, recipe_file, *options, before=NOT_EXACT)
    assert done.returncode == 1, done.stdout
    assert "DIFFERENT  log.jsonl" in done.stdout
    assert "error: resuming is not exact: " in done.stderr


@pytest.mark.long
def test_remote_code_that_the_command_allows_is_allowed_in_its_runs_too(commands, recipe_file, tmp_path):
    trusted = ("model.trust_remote_code=true", f"output_dir={tmp_path / 'tiny'}")
    done = forked(commands, tmp_path, "--recipe", recipe_file, *trusted, "--kills=1")
    assert done.returncode == 0, done.stderr
    assert f"sft-hf finetune {recipe_file} model.trust_remote_code=true" in done.stderr  # the next command


def test_a_recipe_that_does_not_run_says_why(commands, recipe_file, tmp_path):
    done = forked(commands, tmp_path, recipe_file, "data.label_column=labl")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "labl" in done.stderr
