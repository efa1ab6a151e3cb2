"""The objects that the training loop uses, and its progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sft_hf.core.recipe.recipe import Recipe
from sft_hf.data.examples import Examples
from sft_hf.engine.batches import StepBatch
from sft_hf.engine.callbacks import Callbacks
from sft_hf.engine.prefetch import OneAhead
from sft_hf.engine.technique_stack import TechniqueStack
from sft_hf.tasks.base import Task


class TrainingData(Protocol):
    """Source of epochs: a data set in memory, or a stream read one buffer at a time."""

    def epoch(self, index: int) -> tuple[Examples, list[StepBatch]]:
        """Return the rows of epoch `index` and their batch plan, a pure function of the index."""


_RENAMED = {"window": "step_in_epoch", "halvings": "oom_splits", "prefix_cached": "frozen_features"}
"""Field names in checkpoints of 0.1.0, which have no `best_loss` either."""


@dataclass
class TrainState:
    """Progress of a run, as plain values that are saved as JSON."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples_seen: int = 0
    best_metric: float | None = None
    best_loss: float | None = None  # validation loss of the best step
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    awaiting_evaluation: bool = False  # the evaluation due after this step has not been finished
    stopped_early: bool = False
    stopped_by: str | None = None  # what ended the run before its last step: early_stopping_patience, or a callback
    oom_splits: int = 0  # forward batches are split into 2**oom_splits: see `sft_hf.engine.step`
    frozen_features: bool | None = None  # whether the cache is used: see `sft_hf.engine.frozen_features.build`
    loss: float = math.nan
    seconds: float = 0.0  # in training steps only, without evaluation and saving
    interval: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainState:
        """Return the state that `to_json` wrote. Raises KeyError naming a field that is missing or unknown."""
        data = {"best_loss": None, **{_RENAMED.get(name, name): value for name, value in data.items()}}
        if wrong := {name.name for name in fields(cls)} ^ data.keys():
            raise KeyError(f"train_state.{min(wrong)}")
        return cls(**{**data, "loss": math.nan if data["loss"] is None else data["loss"]})


@dataclass
class Training:
    """Everything the training loop needs; built by `sft_hf.jobs.build`."""

    recipe: Recipe
    task: Task[Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Accelerator
    data: TrainingData
    techniques: TechniqueStack
    num_steps: int
    log: Callable[[dict[str, Any]], None]
    evaluate: Callable[[TrainState], bool]
    """Evaluates on validation and saves the weights if they are the best; returns True to stop early."""
    save: Callable[[TrainState], None]
    callbacks: Callbacks = field(default_factory=Callbacks)
    """The user's callbacks."""
    upcoming: StepBatch | None = None
    """The rows of the step after the current one, if known."""
    ahead: OneAhead[Any] = field(default_factory=OneAhead)

    def tell(self, line: dict[str, Any]) -> None:
        """Write a line to log.jsonl, and pass it to the callbacks."""
        self.log(line)
        self.callbacks.log(line)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters, cached: listing them takes as long as a small step."""
        return list(self.model.parameters())

    @cached_property
    def norms(self) -> list[_NormBase]:
        """The model's batch norm layers."""
        return [module for module in self.model.modules() if isinstance(module, _NormBase)]
