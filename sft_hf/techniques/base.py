"""What a technique is: something that modifies training, for every task, in one to three of the places below.

A file `sft_hf/techniques/THEME/NAME.py` holds a pure function with its source, and a class named after the file. Its
settings are a class in `sft_hf/techniques/THEME/settings.py`, which imports no torch: they declare, too, what the
technique needs and what it cannot be combined with (`sft_hf.core.recipe.component_settings.TechniqueSettings`). The
technique's class overrides the methods it needs; every one does nothing here. Nothing else has to be changed, and
`sft_hf.engine.technique_stack` calls the methods in the order that `order` says, whatever the order in the recipe.

Whatever is drawn at random is a function of (seed, step or epoch, row), so that a resumed run draws the same:
`TrainBatch.generators`, the generator given to `change_row`, or torch's global one, which each step seeds again.
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
"""float32 logits [items, classes] -> the loss [items, classes] that an item would have, were its class this one."""

Schedule = Callable[[int], float]
"""A step (0-based) -> the factor of the peak learning rate in it."""


@dataclass(frozen=True)
class Context:
    """What a technique may look at when it is put together, before any step.

    `label_counts` are the training rows of each label, in label order; None for a task without labels, and for a
    stream. `schedule(n)` is the recipe's learning-rate schedule over n steps. `splits` are the roles that have rows.
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

    `partner` holds as many rows again, padded to the same shapes, where a technique wants a second row for each
    (`needs_partner`): row i's partner is another row of the same optimizer step, drawn for that step. So it does not
    depend on how the step is cut into passes. `keys` [rows] are numbers that differ for each (seed, step, row).

    `unlabeled` holds rows without labels by view (`Technique.unlabeled_views`), where a technique needs them: n for
    each row of `inputs`, in its order, so that row i's are the rows i * n to i * n + n - 1 of every view. A loss of
    theirs is added to that of their row.
    """

    inputs: Batch
    partner: Batch | None = None
    keys: tuple[int, ...] = ()
    unlabeled: Mapping[str, Batch] = field(default_factory=dict)

    def to(self, device: torch.device) -> TrainBatch:
        """Return the batch on `device`."""
        return self._each(to_device, device)

    def pinned(self, device: torch.device) -> TrainBatch:
        """Return the batch where it is fastest copied to `device`."""
        return self._each(pinned, device)

    def _each(self, move: Callable[[Batch, torch.device], Batch], device: torch.device) -> TrainBatch:
        partner = None if self.partner is None else move(self.partner, device)
        unlabeled = {name: move(batch, device) for name, batch in self.unlabeled.items()}
        return replace(self, inputs=move(self.inputs, device), partner=partner, unlabeled=unlabeled)

    def with_inputs(self, inputs: Batch) -> TrainBatch:
        """Return the batch with other inputs, for the loss inside; it has no partner any more."""
        return replace(self, inputs=inputs, partner=None)

    def generators(self, salt: int) -> list[np.random.Generator]:
        """Return a generator for each row; `salt` distinguishes techniques."""
        return [np.random.default_rng([salt, key]) for key in self.keys]


Loss = Callable[[nn.Module, TrainBatch], Tensor]
"""Model and batch -> each row's loss, summed over its items, float32 [rows]."""


@dataclass(frozen=True)
class LossParts:
    """What `wrap_loss` may build on, besides the loss that it wraps: the task, and the items' criterion."""

    task: Task[Any]
    criterion: Criterion

    def of_items(self, items: Items) -> Tensor:
        """Return each row's loss, given what a forward pass says of its items, float32 [rows]."""
        return items.row_losses(self.criterion)


class Technique(Generic[SettingsT]):
    """One technique; the first line of a subclass's docstring is what `sft-hf techniques` says about it."""

    paper: ClassVar[str] = ""
    """Authors, title, year; section or equation."""

    order: ClassVar[int] = 50
    """Lower ones come first; of two that wrap the same thing, the higher one is outside."""

    unlabeled_views: ClassVar[tuple[str, ...]] = ("train",)
    """The looks at unlabeled rows that it wants (`Examples.views`), if its settings say `needs_unlabeled`."""

    allows_frozen_features: ClassVar[bool] = False
    """Whether it may be used while a frozen part's outputs come from the cache of frozen features: it changes neither
    the inputs nor the frozen part, makes one forward pass, and needs no unlabeled rows."""

    def __init__(self, settings: SettingsT, context: Context) -> None:
        self.settings, self.context = settings, context

    # --- rows ----------------------------------------------------------------------------------------------------

    def sample_rows(self, examples: Examples, generator: np.random.Generator) -> np.ndarray | None:
        """Return the rows of an epoch, int64, as many as there are, some perhaps twice; None: each once."""
        return None

    def change_row(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Return a training row (what `Task.collate` takes a list of) as it is to be seen in this epoch."""
        return row

    # --- the model before training -------------------------------------------------------------------------------

    def prepare_model(self, model: nn.Module) -> None:
        """Change the model in place before the optimizer is built, or remember its pretrained weights.

        A resumed run does this too, before its weights are put back.
        """

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """Return factors of the learning rate for parameters by name; those left out keep 1."""
        return {}

    def wrap_schedule(self, schedule: Schedule) -> Schedule:
        """Return another learning-rate schedule."""
        return schedule

    # --- a step, in this order -----------------------------------------------------------------------------------

    def before_step(self, model: nn.Module, step: int) -> None:
        """Prepare the model for step `step` (0-based), from whatever state a resumed run finds it in."""

    def wrap_criterion(self, criterion: Criterion) -> Criterion:
        """Return another loss of an item."""
        return criterion

    def wrap_loss(self, loss: Loss, parts: LossParts) -> Loss:
        """Return another loss of the rows."""
        return loss

    def compute_gradients(self, model: nn.Module, compute: Callable[..., float]) -> float:
        """Leave in `.grad` the gradient that the optimizer is to see; return the step's mean loss.

        `compute()` goes through the whole step, all passes and ranks, with the same random numbers each time, and
        leaves the gradient of the mean loss. `compute(keep_statistics=False)` leaves batch norm's running statistics
        as they were.
        """
        return compute()

    def change_gradients(self, model: nn.Module) -> None:
        """Change the gradients in place, before they are clipped; they are summed over all ranks by then."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Look at the weights after `step` updates (1-based)."""

    # --- evaluation and the end ----------------------------------------------------------------------------------

    def evaluated_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return other values of parameters and buffers, by name, that are evaluated and saved in place of these."""
        return {}

    def after_training(self, task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> dict[str, Any]:
        """Choose parameters on the outputs of validation after training; return the facts for metrics.json."""
        return {}

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs back, as tensors; what is a function of the step needs nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
