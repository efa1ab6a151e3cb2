"""`sft-hf verify-resume`: check that a killed and resumed run is identical to an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hf.core.errors import SftError, UserError
from sft_hf.core.filesystem import WINDOWS
from sft_hf.core.recipe.recipe import TRUST, Recipe, validate_recipe
from sft_hf.engine.resume.checkpoint import list_checkpoints

log = logging.getLogger("sft_hf")

KILLED = 1 if WINDOWS else -signal.SIGKILL  # return code of Popen.wait after Popen.kill
CARD = "README.md"  # not compared: includes times from metrics.json

# Entries of metrics.json that differ between identical runs.
VOLATILE = ("runtime_seconds", "total_seconds", "examples_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class Verdict:
    """The files compared, the number of kills, and the files that differ."""

    compared: tuple[str, ...]
    differing: tuple[str, ...]
    kills: int
    steps: int

    @property
    def exact(self) -> bool:
        """Whether the two runs are identical."""
        return not self.differing


def shorten(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe shortened to `steps`, with several saves and evaluations."""
    data: dict[str, Any] = recipe.model_dump(mode="json")
    data["train"] |= {"max_steps": steps, "logging_steps": max(1, steps // 10)}
    data["checkpoint"] |= {"save_steps": max(1, steps // 5), "save_total_limit": 2}
    data["eval"] |= {"eval_steps": max(1, steps // 3)}
    for role in ("validation", "test"):
        data["data"][f"max_{role}_samples"] = min(data["data"][f"max_{role}_samples"] or 200, 200)
    return validate_recipe(data)


def verify_resume(recipe: Recipe, *, kills: int = 3, steps: int | None = 20, seed: int = 0) -> Verdict:
    """Run a recipe uninterrupted, and again with SIGKILLs at random times, and compare the two run folders.

    Args:
        kills: number of times the second run is killed, each time after its first checkpoint.
        steps: length of both runs; None: the recipe's own length.
        seed: seed for choosing the kill times.

    Raises UserError for a recipe that does not run, SftError for a resumed run that fails.
    """
    recipe = recipe if steps is None else shorten(recipe, steps)
    recipe = recipe.model_copy(update={"push_to_hub": False, "report_to": []})  # test runs are not published
    with _work_folder(Path(recipe.output_dir or ".")) as work:
        file = work / "recipe.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        log.info("one uninterrupted run")
        trust = recipe.model.trust_remote_code
        _Process(file, work / "whole", trust).finish()
        log.info("the same run, killed %d times", kills)
        done = _killed_and_resumed(file, work / "killed", kills, random.Random(seed), trust)  # noqa: S311 - no secret
        first, second = _contents(work / "whole"), _contents(work / "killed")
    differing = tuple(name for name in first if first[name] != second[name])
    return Verdict(tuple(first), differing, done, first["metrics.json"]["train"]["num_steps"])


@contextmanager
def _work_folder(output_dir: Path) -> Iterator[Path]:
    """Create a temporary folder on the file system of the run folder; delete it on exit."""
    parent = output_dir
    while not parent.is_dir():
        parent = parent.parent
    work = Path(tempfile.mkdtemp(prefix=".verify-resume-", dir=parent if os.access(parent, os.W_OK) else None))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _killed_and_resumed(file: Path, folder: Path, kills: int, generator: random.Random, trust: bool) -> int:
    """Run to the end with up to `kills` kills; return their number."""
    # An estimate of the training time after the first checkpoint, divided so that each kill comes before the end.
    seconds = 0.7 * _training_seconds(file.parent / "whole") / kills
    for done in range(kills):
        process = _Process(file, folder, trust)
        if not process.gets_going():
            return done
        time.sleep(generator.uniform(0, seconds))
        if not process.kill():
            return done
        log.info("killed after step %d", _last_step(folder))
    _Process(file, folder, trust).finish()
    return kills


class _Process:
    """A run in a separate process, resumed if there is a checkpoint; `trust`: allow remote code."""

    def __init__(self, file: Path, folder: Path, trust: bool) -> None:
        self.folder, self.output = folder, folder.with_suffix(".txt")
        self.lines_before = _lines(folder)
        command = [sys.executable, "-m", "sft_hf", "finetune", str(file), "--output-dir", str(folder)]
        if trust:  # not accepted from a file alone
            command.append(f"{TRUST}=true")
        if (folder / "recipe.yaml").is_file():
            command.append("--resume")
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def finish(self) -> None:
        """Wait for the run to succeed. Raises the run's error if it fails."""
        try:
            self._check(self.process.wait())
        finally:
            self.process.kill()

    def _check(self, code: int) -> None:
        if code:
            lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [
                "it printed nothing"
            ]
            raise (UserError if code == UserError.exit_code else SftError)(lines[-1].removeprefix("error: "))

    def gets_going(self) -> bool:
        """Wait for a checkpoint and a new line in the log; return False if the run ended before that."""
        while _lines(self.folder) <= self.lines_before or not list_checkpoints(self.folder / "checkpoints"):
            if (code := self.process.poll()) is not None:
                self._check(code)
                return False
            time.sleep(0.01)
        return True

    def kill(self) -> bool:
        """Kill the run; return whether it was still running."""
        self.process.kill()
        code = self.process.wait()
        if code != KILLED:
            self._check(code)
        return code == KILLED


def _lines(folder: Path) -> int:
    try:
        return (folder / "log.jsonl").read_text(encoding="utf-8").count("\n")
    except OSError:
        return 0


def _last_step(folder: Path) -> int:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"])


def _training_seconds(folder: Path) -> float:
    return float(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["train"]["runtime_seconds"])


def _contents(folder: Path) -> dict[str, Any]:
    """Return {file: contents to compare}."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["train"] = {key: value for key, value in metrics["train"].items() if key not in VOLATILE}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    log_lines = [{key: value for key, value in line.items() if key not in VOLATILE} for line in lines]
    binary = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("model", "outputs")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and path.name != CARD
    }
    predictions = hashlib.sha256((folder / "predictions.jsonl").read_bytes()).hexdigest()
    return {**binary, "predictions.jsonl": predictions, "metrics.json": metrics, "log.jsonl": log_lines}
