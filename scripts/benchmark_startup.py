"""Time from the start of a command to its first training step.

    python scripts/benchmark_startup.py text image speech                          # recipes, by name; median of 3
    python scripts/benchmark_startup.py text image speech --set row_cache_gb=0     # without cached rows of earlier
        runs

An uncounted first run fills the caches of `pypi://` packages and prepared rows. A run writes its folder when everything
is prepared, immediately before the first step: the time is taken at that point, and the run is killed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 600  # seconds


def main() -> None:
    """Measure the recipes given on the command line, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipes")
    options = parser.parse_args()
    for recipe in options.recipes:
        seconds_to_first_step(recipe, options.set)  # fills caches
        found = sorted(seconds_to_first_step(recipe, options.set) for _ in range(options.runs))
        print(f"{recipe}: {statistics.median(found):.1f} s ({found[0]:.1f} to {found[-1]:.1f})", flush=True)


def seconds_to_first_step(recipe: str, changes: list[str]) -> float:
    """Start a run, wait until its folder exists, and kill it."""
    with tempfile.TemporaryDirectory(prefix="sft-hf-startup-") as folder:
        written = Path(folder, "run", "recipe.yaml")
        started = time.perf_counter()
        run = subprocess.Popen(
            [sys.executable, "-m", "sft_hf", "finetune", recipe, *changes, "--output-dir", str(written.parent)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while not written.exists() and run.poll() is None and time.perf_counter() - started < LIMIT:
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        ended = run.poll() is not None
        run.kill()
        _, said = run.communicate()
        if ended:
            sys.exit(f"{recipe}: ended before its first step:\n{said.decode()[-2000:]}")
    return seconds


if __name__ == "__main__":
    main()
