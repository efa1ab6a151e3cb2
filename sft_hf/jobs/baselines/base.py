"""Common code of baselines: the run to compare with, the time budget, and scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.sources.sources import Source
from sft_hf.data.examples import Examples
from sft_hf.engine.evaluation import batch_sizes, concatenate, predict
from sft_hf.engine.process import sum_over_ranks
from sft_hf.tasks.base import Task
from sft_hf.tasks.scoring.confidence import Confidence
from sft_hf.tasks.scoring.intervals import CONFIDENCE_SAMPLES

MOST_SECONDS = 600.0
MOST_SECONDS_WAITING = 60.0  # if other processes wait for the main process
Clock = Callable[[], float]
FIRST_ROWS = 16  # always predicted, regardless of time; their duration determines how many more follow


class Budget:
    """The time budget of a baseline, in seconds; tests replace the clock."""

    def __init__(self, seconds: float, accelerator: Accelerator, clock: Clock = time.perf_counter) -> None:
        self.clock, self.accelerator = clock, accelerator
        waiting = MOST_SECONDS_WAITING if accelerator.num_processes > 1 else MOST_SECONDS
        self.end = clock() + min(seconds, waiting)

    def left(self) -> float:
        """Return the remaining seconds, by this rank's clock."""
        return max(0.0, self.end - self.clock())

    def part(self, share: float) -> Budget:
        """Return a budget of a share of the remaining time."""
        return Budget(share * self.left(), self.accelerator, self.clock)

    def rows(self, done: int, seconds: float) -> int:
        """Return the number of rows that fit into the remaining time if `done` rows took `seconds` on this rank."""
        return int(min(done * self.left() / max(seconds, 1e-6), 2**40))


@dataclass(frozen=True)
class Run:
    """A trained and scored run, as baselines need it.

    Attributes:
        split: the role that is scored: test, or validation.
        examples: the prepared rows by role, without train if it is a stream.
        tables: the rows as read, by role.
        answers: the model's predictions for the rows of `split`, as in predictions.jsonl.
    """

    recipe: Recipe
    task: Task[Any]
    source: Source
    accelerator: Accelerator
    split: str
    examples: Mapping[str, Examples]
    tables: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]]

    @property
    def scored(self) -> Examples:
        """The rows that the model was scored on."""
        return self.examples[self.split]

    @property
    def train(self) -> Examples | None:
        """The training rows."""
        return self.examples.get("train")

    @property
    def multi_label(self) -> bool:
        """Whether a row may have any number of labels."""
        return bool(getattr(self.task, "multi_label", False))

    def order(self, number: int) -> np.ndarray:
        """Return a random permutation of `number` row indices; its first ones are a random sample."""
        return np.random.default_rng(self.recipe.seed).permutation(number)

    def fresh_model(self) -> nn.Module:
        """Return the pretrained model with the same newly initialized weights that the run started from."""
        set_seed(self.recipe.seed)
        model = self.task.build_model(self.source, self.recipe.model).to(self.accelerator.device)
        return model.eval()


@dataclass(frozen=True)
class Baseline:
    """Result of a baseline: `metrics` and `predictions` are of the scored rows `rows`, ascending.

    `sampled` describes samples used to save time. `predictions` is None if unknown.
    """

    name: str
    description: str
    metrics: dict[str, Any]
    predictions: Sequence[Any] | None
    rows: np.ndarray
    sampled: list[str] = field(default_factory=list)

    def fitted_to(self, rows: int, total: int) -> Baseline:
        """Record the number of training rows it was fitted to, and return self."""
        if rows < total:
            self.sampled.append(f"{rows:,} of {total:,} training rows")
        return self


def scored(
    run: Run,
    name: str,
    description: str,
    outputs: dict[str, Tensor],
    rows: np.ndarray,
    tune: tuple[dict[str, Tensor], Examples] | None = None,
) -> Baseline:
    """Score outputs by the task.

    Args:
        run: the run to compare with.
        name, description: of the baseline.
        outputs: as returned by `Task.predict_batch`, for `rows` of the scored split.
        rows: the row indices.
        tune: outputs and rows to tune the baseline's decision thresholds on.
    """
    scorer = copy(run.task.scorer)
    scorer.confidence = Confidence()
    if tune is not None:
        scorer.tune(*tune)
    metrics = scorer.score(outputs, run.scored.take(rows), CONFIDENCE_SAMPLES)
    return Baseline(name, description, metrics, [row["prediction"] for row in scorer.decode(outputs)], rows)


def predict_within(
    run: Run, task: Any, model: nn.Module, examples: Examples, budget: Budget, description: str, first: int = FIRST_ROWS
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Predict rows in random order until the time is up, but at least `first` of them.

    Returns the row indices, ascending, and the outputs in this order. Raises the errors of `evaluation.predict`.
    """
    options = {**batch_sizes(run.recipe, run.task, run.accelerator, autocast=False), "autocast": False}
    order = run.order(len(examples))
    parts: list[dict[str, Tensor]] = []
    done, size, started = 0, first, budget.clock()
    while done < len(order) and size > 0:
        rows = order[done : done + size]
        parts.append(predict(task, model, examples.take(rows), run.accelerator, description=description, **options))
        done += len(rows)
        size = _same_on_all_ranks(budget.rows(done, budget.clock() - started), run.accelerator)
        size = size if size >= first else 0
    back = np.argsort(order[:done])
    outputs = {name: concatenate([part[name] for part in parts])[torch.from_numpy(back)] for name in parts[0]}
    return order[:done][back], outputs


def _same_on_all_ranks(number: int, accelerator: Accelerator) -> int:
    own = number if accelerator.is_main_process else 0
    return int(sum_over_ranks(torch.tensor(own, device=accelerator.device), accelerator))
