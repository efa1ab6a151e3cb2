"""The run folder: its files, and rules for writing to it."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from sft_hf.core.errors import RunFolderError
from sft_hf.core.filesystem import WINDOWS, committed_folder, remove_leftovers, storage_errors, write_text
from sft_hf.core.recipe.recipe import NON_IDENTITY_KEYS, Recipe, refuse_trust, validate_recipe
from sft_hf.core.recipe.yaml_files import flatten, read_yaml
from sft_hf.core.run.outputs import SplitOutputs, write_outputs

# What a run writes; --overwrite removes these and nothing else.
OWN_ENTRIES = (
    *("recipe.yaml", "model", "metrics.json", "predictions.jsonl", "log.jsonl", "report.html"),
    *("adapter", "outputs", "checkpoints", "tensorboard"),
)

LOCK, OWNER = ".lock", ".lock.owner"

# Files that a run killed at its start may have left; a folder with only these counts as empty.
LEFTOVERS = (LOCK, OWNER, ".recipe.yaml.tmp")

REMEDY = "put it back, or train again (--overwrite; in Python: overwrite=True)"
"""Advice for a missing or broken part of a finished run, which only training can write."""


class RunFolder:
    """The paths of a run, and the checks before writing to them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.metrics_file = path / "metrics.json"
        self.predictions_file = path / "predictions.jsonl"
        self.outputs = path / "outputs"
        self.log_file = path / "log.jsonl"
        self.report_file = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.lock = RunLock(path)

    def has_begun(self) -> bool:
        """Whether a run was started here, even if it was killed before its first step."""
        return self.recipe_file.is_file()

    def refuse_if_taken(self, resume: bool | Literal["auto"], overwrite: bool) -> None:
        """Raise RunFolderError if the folder cannot be used; changes nothing.

        `resume="auto"` resumes if a run was started here.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path}: is a file; output_dir has to be a folder")
        if resume and overwrite:
            raise RunFolderError(
                "resuming continues a run and overwriting deletes it: give one of --resume, --auto-resume and "
                "--overwrite (in Python: resume, overwrite)"
            )
        holds_run = any((self.path / name).exists() for name in OWN_ENTRIES)
        if resume and self.has_begun():
            return
        if resume is True:
            raise RunFolderError(
                f"{self.path}: no run to resume here (no recipe.yaml); start it without --resume, or give "
                '--auto-resume (in Python: resume="auto"), which starts a run where there is none'
            )
        if holds_run and not overwrite:
            raise RunFolderError(
                f"{self.path}: already holds a run; continue it with --resume (in Python: resume=True), replace it "
                "with --overwrite (overwrite=True), or choose another folder with --output-dir (output_dir)"
            )
        if not holds_run and self.path.is_dir() and any(path.name not in LEFTOVERS for path in self.path.iterdir()):
            raise RunFolderError(
                f"{self.path}: is not empty and holds no run; choose another folder with --output-dir (the recipe's "
                "output_dir)"
            )

    def refuse_other_recipe(self, recipe: Recipe) -> None:
        """Raise RunFolderError if the run here was started with settings that differ in more than NON_IDENTITY_KEYS."""
        old, new = (
            flatten(
                load_run_recipe(self.path, trust_remote_code=recipe.model.trust_remote_code).model_dump(mode="json")
            ),
            flatten(recipe.model_dump(mode="json")),
        )
        changed = [key for key in {**old, **new} if key not in NON_IDENTITY_KEYS and old.get(key) != new.get(key)]
        if changed:
            key = changed[0]
            change = f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
            raise RunFolderError(
                f"{self.path}: cannot resume with another recipe: {change}"
                + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
                + "; resume with the run's own recipe.yaml, or start another run"
            )

    def finished(self) -> dict[str, Any] | None:
        """Return the metrics of a finished run, None for an unfinished one. Raises RunFolderError."""
        if not self.metrics_file.is_file():
            return None
        metrics: dict[str, Any] = whole(self.metrics_file, lambda file: json.loads(file.read_text(encoding="utf-8")))
        without_model = "model" in metrics.get("not_written", ())
        return metrics if without_model or (self.model / "config.json").is_file() else None

    def refuse_unfinished(self) -> None:
        """Raise RunFolderError for a run without metrics.json, which is written last."""
        if not self.metrics_file.is_file():
            raise RunFolderError(
                f"{self.path}: the run is not finished (no metrics.json); continue it with --resume (resume=True)"
            )

    def start(self, recipe: Recipe, overwrite: bool) -> None:
        """Take the lock, remove the files of an earlier run and write the resolved recipe.

        Raises StorageError, and RunFolderError if another run has started in the folder meanwhile.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock.acquire()
        self.refuse_if_taken(resume=False, overwrite=overwrite)
        with storage_errors(self.path):
            for name in OWN_ENTRIES:
                entry = self.path / name
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        write_text(self.recipe_file, recipe.to_yaml())

    def append_log(self, line: dict[str, Any]) -> None:
        """Add a line to log.jsonl. Raises StorageError."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        with storage_errors(self.log_file), open(self.log_file, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(clean) + "\n")

    def go_back_to(self, step: int, awaiting_evaluation: bool) -> None:
        """Remove leftovers of killed runs, and log lines from after `step`, which will be written again.

        `awaiting_evaluation`: the evaluation at `step` itself will be repeated. Raises StorageError.
        """
        remove_leftovers(self.path)
        remove_leftovers(self.checkpoints)
        if not self.log_file.is_file():
            return
        kept = []
        for line in self.log_file.read_text(encoding="utf-8").splitlines():
            try:
                fields = json.loads(line)
                evaluation = "loss" not in fields
                if fields["step"] < step + (not (evaluation and awaiting_evaluation)):
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a crash
        write_text(self.log_file, "".join(kept))

    def read_log(self) -> list[dict[str, Any]]:
        """Return the lines of log.jsonl so far."""
        return read_json_lines(self.log_file)

    def outputs_file(self, split: str) -> Path:
        """Return the path of a split's outputs, see `sft_hf.core.run.outputs`."""
        return self.outputs / f"{split}.safetensors"

    def write_outputs(self, outputs: Mapping[str, SplitOutputs]) -> None:
        """Write outputs/, one file per split. Raises StorageError."""
        with committed_folder(self.outputs) as aside:
            for split, found in outputs.items():
                write_outputs(aside / self.outputs_file(split).name, found)

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Write predictions.jsonl. Raises StorageError."""
        write_text(self.predictions_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class RunLock:
    """A reentrant lock that allows one run at a time in a folder; the error for a second one names the owner.

    The operating system holds the lock, so it is released however the process ends; a file next to it names the
    owner.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take the lock; in a folder that does not exist yet, do nothing. Raises RunFolderError, StorageError."""
        if self._lock.is_locked or not self.folder.is_dir():
            return
        with storage_errors(self.folder):
            try:
                self._lock.acquire()
            except Timeout:
                raise RunFolderError(
                    f"{self.folder}: another run is working in it ({self._owner()}); wait for it, stop it, or choose "
                    "another folder with --output-dir"
                ) from None
            (self.folder / OWNER).write_text(json.dumps(_myself()), encoding="utf-8")

    def release(self) -> None:
        """Release the lock, and remove its files."""
        if not self._lock.is_locked:
            return
        (self.folder / OWNER).unlink(missing_ok=True)
        if not WINDOWS:  # Windows cannot delete open files; there `filelock` deletes it after closing it
            (self.folder / LOCK).unlink(missing_ok=True)
        self._lock.release()

    def _owner(self) -> str:
        try:
            owner = json.loads((self.folder / OWNER).read_text(encoding="utf-8"))
            return f"process {int(owner['pid'])} on {owner['host']!s:.100}, since {owner['since']!s:.30}"
        except (OSError, ValueError, KeyError, TypeError):
            return "owner unknown"


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}


def whole(file: Path, read: Callable[[Path], Any]) -> Any:
    """Return `read(file)` for a file of a finished run. Raises RunFolderError if it cannot be read."""
    try:
        return read(file)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file}: cannot be read ({error}); {REMEDY}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file; empty for a missing file. Raises OSError, ValueError."""
    if not path.is_file():
        return []
    # Not str.splitlines, which also cuts at U+0085, U+2028 and U+2029: labels and texts may hold these.
    with open(path, encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def open_run(path: str | Path, *, with_model: bool = True) -> RunFolder:
    """Open the folder of a run. Raises RunFolderError for anything else, and for a run without a model.

    `with_model=False` accepts a run without a model.
    """
    folder = RunFolder(Path(path).expanduser())
    if not folder.path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    if not folder.recipe_file.is_file():
        raise RunFolderError(f"{path}: is not a run folder (it has no recipe.yaml)")
    if with_model and not (folder.model / "config.json").is_file():
        if folder.finished() is not None:
            raise RunFolderError(f"{path}: the run did not save its model (outputs)")
        raise RunFolderError(f"{path}: the run has no model yet; continue it with: sft-hf finetune ... --resume")
    return folder


def load_run_recipe(path: Path, *, trust_remote_code: bool = False) -> Recipe:
    """Return the recipe of a run. Raises RecipeError, also for a `trust_remote_code` that was not allowed."""
    file = path / "recipe.yaml"
    data = read_yaml(file)
    refuse_trust(data, str(file), allowed=trust_remote_code)
    return validate_recipe(data, str(file))
