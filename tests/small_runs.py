"""What tests ask of runs in their own process: prepared, interrupted and resumed, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft_hf.core.errors import Terminated
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.engine import loop
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.job import TrainingJob
from sft_hf.jobs.results import RunResult


def prepared(recipe: Recipe, **options: Any) -> TrainingJob:
    """A run before its first step; `options` are those of `TrainingJob`."""
    run = TrainingJob(recipe, **options)
    run.prepare()
    return run


def trained(recipe: Recipe, **options: Any) -> TrainingJob:
    """A run after its last step, neither scored nor written; `options` are those of `TrainingJob`."""
    with TrainingJob(recipe, **options) as run:
        run.prepare()
        run.train()
    return run


BRIEF = ("model", "predictions")


def briefly(recipe: Recipe, **options: Any) -> RunResult:
    """`finetune` without what most tests do not look at: report, card, baselines and saved outputs."""
    return finetune(recipe, outputs=BRIEF, **options)


class Killed(Exception):
    """The end of a run that had no time to save anything."""


def interrupted_and_resumed(recipe: Recipe, stop_at: int) -> RunResult:
    """A run that a signal stops after `stop_at` steps, and that goes on from what it saved then, briefly."""
    stop(recipe, stop_at, Terminated("here"))
    return briefly(recipe, resume=True)


def killed_and_resumed(recipe: Recipe, stop_at: int, outputs: Collection[str] = BRIEF) -> RunResult:
    """A run that dies after `stop_at` steps, and that goes on from its last checkpoint."""
    stop(recipe, stop_at, Killed())
    return finetune(recipe, resume=True, outputs=outputs)


def stop(recipe: Recipe, stop_at: int, error: Exception, **options: Any) -> None:
    """Run `stop_at` steps of a run, in the next of which it ends with the error; `options` are those of `finetune`."""
    step = loop.train_step

    def stopping(training, examples, window, state):
        if state.step == stop_at:
            raise error
        return step(training, examples, window, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        with pytest.raises(type(error)):
            finetune(recipe, **options)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights that a run saved."""
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl, or the lines of log.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]
