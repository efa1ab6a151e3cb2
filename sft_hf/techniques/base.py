"""The Technique interface: hooks that modify training, independent of the task.

A file `sft_hf/techniques/THEME/NAME.py` contains a pure function with its source, and a class named after the file. Its
settings are a class in `sft_hf/techniques/THEME/settings.py`, which does not import torch; they also declare what the
technique needs and what it cannot be combined with (`sft_hf.core.recipe.component_settings.TechniqueSettings`). The
technique's class overrides the hooks it needs; by default they do nothing. No other file has to be changed.
`sft_hf.engine.technique_stack` calls the hooks in the order of `order`, regardless of the order in the recipe.

Random numbers must be a function of (seed, step or epoch, row), so that a resumed run draws the same ones: use
`TrainBatch.generators`, the generator given to `change_row`, or torch's global one, which is seeded in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.recipe.component_settings import TechniqueSettings
from sft_hf.data.examples import Examples
from sft_hf.tasks.base import Batch, Items, Task, pinned, to_device

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import Recipe

SettingsT = TypeVar("SettingsT", bound=TechniqueSettings)

Criterion = Callable[[Tensor], Tensor]
"""float32 logits [items, classes] -> the loss of each item for each class, [items, classes]."""

Schedule = Callable[[int], float]
"""Step (0-based) -> factor of the peak learning rate."""


@dataclass(frozen=True)
class Context:
    """Information about the run, passed to the constructors of techniques.

    `label_counts` are the numbers of training rows of each label, in label order; None for a task without labels, and
    for a stream. `schedule(n)` is the recipe's learning-rate schedule over n steps. `splits` are the existing splits.
    """

    recipe: Recipe
    task: Task[Any]
    num_steps: int
    steps_per_epoch: int | None
    label_counts: Sequence[int] | None
    schedule: Callable[[int], Schedule]
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainBatch:
    """The rows of one forward pass.

    `partner` has a second row for each row, padded to the same shapes, if a technique sets `needs_partner`: row i's
    partner is a random row of the same optimizer step, so it does not depend on how the step is divided into forward
    passes. `keys` [rows] are seeds that differ for each (seed, step, row).

    `unlabeled` has unlabeled rows by view (`Technique.unlabeled_views`), if a technique needs them: n per row of
    `inputs`, in the same order, so that rows i * n to i * n + n - 1 of every view belong to row i. Their losses are
    added to that of row i.
    """

    inputs: Batch
    partner: Batch | None = None
    keys: tuple[int, ...] = ()
    unlabeled: Mapping[str, Batch] = field(default_factory=dict)

    def to(self, device: torch.device) -> TrainBatch:
        """Return the batch on `device`."""
        return self._each(to_device, device)

    def pinned(self, device: torch.device) -> TrainBatch:
        """Return the batch in pinned memory if that speeds up the copy to `device`."""
        return self._each(pinned, device)

    def _each(self, move: Callable[[Batch, torch.device], Batch], device: torch.device) -> TrainBatch:
        partner = None if self.partner is None else move(self.partner, device)
        unlabeled = {name: move(batch, device) for name, batch in self.unlabeled.items()}
        return replace(self, inputs=move(self.inputs, device), partner=partner, unlabeled=unlabeled)

    def with_inputs(self, inputs: Batch) -> TrainBatch:
        """Return the batch with other inputs and without partner, for the wrapped loss."""
        return replace(self, inputs=inputs, partner=None)

    def generators(self, salt: int) -> list[np.random.Generator]:
        """Return a generator for each row; `salt` distinguishes techniques."""
        return [np.random.default_rng([salt, key]) for key in self.keys]


Loss = Callable[[nn.Module, TrainBatch], Tensor]
"""Model, batch -> the loss of each row, summed over its items, float32 [rows]."""


@dataclass(frozen=True)
class LossParts:
    """The task and the criterion of the items, for `wrap_loss`."""

    task: Task[Any]
    criterion: Criterion

    def of_items(self, items: Items) -> Tensor:
        """Return the loss of each row, float32 [rows], from the items of a forward pass."""
        return items.row_losses(self.criterion)


class Technique(Generic[SettingsT]):
    """Base class of techniques; `sft-hf techniques` shows the first line of a subclass's docstring."""

    paper: ClassVar[str] = ""
    """Authors, title, year; section or equation."""

    order: ClassVar[int] = 50
    """Techniques with lower values are called first; if two wrap the same function, the higher one is the outer one."""

    unlabeled_views: ClassVar[tuple[str, ...]] = ("train",)
    """The views of unlabeled rows (`Examples.views`) that it needs, if its settings have `needs_unlabeled`."""

    allows_frozen_features: ClassVar[bool] = False
    """Whether it works with cached frozen features: it must not change the inputs or the frozen part, must use a
    single forward pass, and must not need unlabeled rows."""

    def __init__(self, settings: SettingsT, context: Context) -> None:
        self.settings, self.context = settings, context

    # --- rows ----------------------------------------------------------------------------------------------------

    def sample_rows(self, examples: Examples, generator: np.random.Generator) -> np.ndarray | None:
        """Return the row indices of an epoch, int64 [rows], possibly with repetitions; None: each row once."""
        return None

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Return a training row (an element of the list given to `Task.collate`) as changed in this epoch."""
        return row

    # --- the model before training -------------------------------------------------------------------------------

    def prepare_model(self, model: nn.Module) -> None:
        """Change the model in place before the optimizer is built, or store its pretrained weights.

        Also called in a resumed run, before the checkpoint is loaded.
        """

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """Return factors of the learning rate by parameter name; 1 for those left out."""
        return {}

    def wrap_schedule(self, schedule: Schedule) -> Schedule:
        """Return a modified learning-rate schedule."""
        return schedule

    # --- a step, in this order -----------------------------------------------------------------------------------

    def before_step(self, model: nn.Module, step: int) -> None:
        """Prepare the model for step `step` (0-based); must not depend on earlier calls, for resumed runs."""

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """Return a modified loss of items."""
        return criterion

    def wrap_loss(self, loss: Loss, parts: LossParts) -> Loss:
        """Return a modified loss of rows."""
        return loss

    def compute_gradients(self, model: nn.Module, compute: Callable[..., float]) -> float:
        """Store the gradient for the optimizer in `.grad`; return the step's mean loss.

        `compute()` runs all forward and backward passes of the step on all ranks, with the same random numbers each
        time, and stores the gradient of the mean loss. `compute(keep_statistics=False)` does not change batch norm's
        running statistics.
        """
        return compute()

    def change_gradients(self, model: nn.Module) -> None:
        """Change the gradients in place, after they are summed over all ranks and before they are clipped."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after step `step` (1-based), with the updated weights."""

    # --- evaluation and the end ----------------------------------------------------------------------------------

    def evaluated_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return values of parameters and buffers, by name, to evaluate and save instead of the trained ones."""
        return {}

    def after_training(self, task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> dict[str, Any]:
        """Choose parameters on the outputs of validation after training; return results for metrics.json."""
        return {}

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs, as tensors, except for functions of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
