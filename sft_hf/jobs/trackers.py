"""Experiment trackers, through Accelerate: TensorBoard, Trackio, Weights & Biases, MLflow. Off by default."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import RecipeError, UserError
from sft_hf.core.recipe.recipe import NON_IDENTITY_KEYS, Recipe
from sft_hf.core.recipe.yaml_files import flatten
from sft_hf.core.redaction import redact

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

log = logging.getLogger("sft_hf")

PROJECT = "sft-hf"
IN_THE_RUN_FOLDER = ("tensorboard",)


def check_installed(recipe: Recipe) -> None:
    """Raise RecipeError for a tracker whose package is not installed."""
    for name in recipe.report_to:
        if find_spec(name) is None:
            raise RecipeError(f"report_to: {name} is not installed; pip install {name}, or leave it out")


class Trackers:
    """The trackers of a run; lines are logged to each of them."""

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        accelerator.project_configuration.logging_dir = str(folder / "tensorboard")

    def start(self, *, in_the_run_folder: bool) -> None:
        """Start the trackers that write into the run folder, or the others, which start before the folder is changed.

        Raises UserError for a tracker that cannot start (no login, no server).
        """
        for name in self.recipe.report_to:
            if (name in IN_THE_RUN_FOLDER) != in_the_run_folder:
                continue
            before = len(self.accelerator.trackers)
            self.accelerator.log_with = [name]
            try:
                self.accelerator.init_trackers(PROJECT, init_kwargs={name: _options(name, self.folder)})
                for tracker in self.accelerator.trackers[before:]:
                    tracker.store_init_configuration(_settings(self.recipe))
            except Exception as error:  # each raises different errors
                del self.accelerator.trackers[before:]  # a tracker that did not start cannot be finished
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise UserError(
                    f"report_to: {name} cannot start: {redact(reason)}; fix that, or leave it out"
                ) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Log the finite numbers of a line of log.jsonl at its step."""
        if not self.accelerator.trackers:
            return
        numbers = {
            key: value
            for key, value in line.items()
            if key != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        self.accelerator.log(numbers, step=line["step"])

    def log_scores(self, step: int, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the metrics of each split at the end of a run, with names that trackers group: test/accuracy."""
        self.log(
            {
                "step": step,
                **{f"{role}/{name}": value for role, found in scores.items() for name, value in found.items()},
            }
        )

    def finish(self) -> None:
        """Finish all trackers. Not `end_training`, which also ends the process group."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers.clear()


def _options(name: str, folder: Path) -> dict[str, Any]:
    if name == "mlflow":
        return {"run_name": folder.name}
    return {"name": folder.name} if name in ("wandb", "trackio") else {}


def _settings(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """Return the recipe by dotted key, without unset keys; values that are not plain are converted to text."""
    settings = recipe.model_dump(mode="json", exclude=set(NON_IDENTITY_KEYS))
    return {
        key: value if isinstance(value, (str, int, float, bool)) else str(value)
        for key, value in flatten(settings).items()
        if value is not None and value not in ({}, [])
    }
