"""Scripts on two processes, each with the variables that torchrun sets, on this machine's CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import commands

ROOT = Path(__file__).parents[1]


def run_on_two_processes(script: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, which has to be a good one; `stderr` and `stdout` are those of both processes."""
    done = commands.shared().python(script, *arguments, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
