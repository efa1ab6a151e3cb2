"""The techniques of a run, combined: calls their hooks in order, for the training loop.

Without techniques, every method makes the same calls as plain training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.errors import RecipeError, RunFolderError
from sft_hf.core.recipe.component_settings import TechniqueSettings
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.recipe.registry import load_component
from sft_hf.data.examples import Examples
from sft_hf.engine.batches import MicroBatch
from sft_hf.engine.epochs import InMemoryEpochs, StreamEpochs
from sft_hf.models.freezing import head_names
from sft_hf.tasks.base import Task
from sft_hf.techniques.base import Context, Criterion, Loss, LossParts, Schedule, Technique, TrainBatch

log = logging.getLogger("sft_hf")


class TechniqueStack:
    """The techniques of a recipe. Raises RecipeError for one that the task or the data does not support."""

    def __init__(self, recipe: Recipe, context: Context) -> None:
        self.recipe, self.context = recipe, context
        found: list[Technique[Any]] = []
        for settings in recipe.techniques:
            cls = load_component("techniques", settings.name)
            if reason := _reason_against(settings, context.task):
                raise RecipeError(f"techniques: {settings.name} does not support this model: {reason}")
            if settings.needs_label_counts and context.label_counts is None:
                raise RecipeError(f"techniques: {settings.name} needs training rows with labels that can be counted")
            if settings.needs_validation and "validation" not in context.splits:
                raise RecipeError(
                    f"techniques: {settings.name} needs a validation split to choose on (data.validation_fraction)"
                )
            found.append(cls(settings, context))
        self.techniques = sorted(found, key=lambda technique: (technique.order, technique.settings.name))
        self.needs_partner = any(technique.settings.needs_partner for technique in self.techniques)
        self._criterion: Criterion = cross_entropy
        for technique in self.techniques:
            self._criterion = technique.wrap_criterion(self._criterion)
        if self.techniques:
            log.info("techniques: %s", ", ".join(map(_described, self.techniques)))

    def __bool__(self) -> bool:
        return bool(self.techniques)

    @property
    def forbids_frozen_features(self) -> str | None:
        """The name of a technique that cannot be combined with cached frozen features, or None."""
        return next((one.settings.name for one in self.techniques if not one.allows_frozen_features), None)

    # --- rows ----------------------------------------------------------------------------------------------------

    def use_data(self, data: InMemoryEpochs | StreamEpochs) -> None:
        """Let techniques sample and change the rows of every epoch. Raises RecipeError for missing rows."""
        if wanting := [one for one in self.techniques if one.settings.needs_unlabeled]:
            if not isinstance(data, InMemoryEpochs) or data.unlabeled is None:
                raise RecipeError(f"techniques: {wanting[0].settings.name} needs unlabeled rows, and there are none")
            data.unlabeled_views = tuple(sorted({view for one in wanting for view in one.unlabeled_views}))
        if _overriding(self.techniques, "change_row"):
            data.changed = self._changed
        if _overriding(self.techniques, "sample_rows"):
            if not isinstance(data, InMemoryEpochs):
                raise RecipeError("techniques: rows of a stream (data.streaming) cannot be sampled")
            data.sampled = self._sampled

    def _changed(self, examples: Examples, epoch: int) -> Sequence[dict[str, Any]]:
        return _ChangedRows(examples, _overriding(self.techniques, "change_row"), self.recipe.seed, epoch)

    def _sampled(self, examples: Examples, epoch: int) -> np.ndarray | None:
        generator = np.random.default_rng([self.recipe.seed, epoch])
        chosen = [technique.sample_rows(examples, generator) for technique in self.techniques]
        return next((rows for rows in chosen if rows is not None), None)

    # --- the model before training -------------------------------------------------------------------------------

    def prepare_model(self, model: nn.Module) -> None:
        """See `Technique.prepare_model`. Raises RecipeError for a technique that the model does not support."""
        for technique in self.techniques:
            if technique.settings.needs_head and not head_names(model):
                raise RecipeError(
                    f"techniques: {technique.settings.name} does not support this model: {type(model).__name__} has "
                    "no new head; all of its weights are pretrained, including the output layer"
                )
            technique.prepare_model(model)

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """Return the product of the techniques' learning-rate factors for each parameter that has one."""
        scales: dict[str, float] = {}
        for technique in self.techniques:
            for name, scale in technique.learning_rate_scales(model).items():
                scales[name] = scales.get(name, 1.0) * scale
        return scales

    def wrap_schedule(self, schedule: Schedule) -> Schedule:
        """See `Technique.wrap_schedule`."""
        for technique in self.techniques:
            schedule = technique.wrap_schedule(schedule)
        return schedule

    # --- a step --------------------------------------------------------------------------------------------------

    def before_step(self, model: nn.Module, step: int) -> None:
        """See `Technique.before_step`."""
        for technique in self.techniques:
            technique.before_step(model, step)

    def partners(self, rows: Sequence[int], step: int) -> dict[int, int]:
        """Return for each row of a step the row to mix it with: a random permutation, drawn per step."""
        if not self.needs_partner:
            return {}
        unique = sorted(set(rows))
        generator = np.random.default_rng([self.recipe.seed, step])
        return dict(zip(unique, (unique[place] for place in generator.permutation(len(unique))), strict=True))

    def collate(
        self, task: Task[Any], examples: Examples, micro: MicroBatch, partners: dict[int, int], step: int
    ) -> TrainBatch:
        """Collate the rows of a forward pass, their partners (to the same shapes), and unlabeled rows."""
        rows = micro.rows
        if not self.techniques:
            return TrainBatch(task.collate([examples.features[row] for row in rows]))
        unlabeled = {
            view: task.collate([features[row] for row in micro.unlabeled])
            for view, features in examples.unlabeled.items()
        }
        second = [partners[row] for row in rows] if partners else []
        both = task.collate([examples.features[row] for row in (*rows, *second)])
        keys = tuple(_key(self.recipe.seed, step, row) for row in rows)
        if not second:
            return TrainBatch(both, None, keys, unlabeled)
        first, last = ({name: tensor[part] for name, tensor in both.items()} for part in _halves(len(rows)))
        return TrainBatch(first, last, keys, unlabeled)

    def losses(self, task: Task[Any], model: nn.Module, batch: TrainBatch) -> Tensor:
        """Return each row's loss, float32 [rows]."""
        return self._loss(task)(model, batch) if self.techniques else task.losses(model, batch.inputs)

    def _loss(self, task: Task[Any]) -> Loss:
        parts = LossParts(task, self._criterion)
        changed = self._criterion is not cross_entropy

        def plain(model: nn.Module, batch: TrainBatch) -> Tensor:
            return parts.of_items(task.items(model, batch.inputs)) if changed else task.losses(model, batch.inputs)

        loss: Loss = plain
        for technique in self.techniques:
            loss = technique.wrap_loss(loss, parts)
        return loss

    def compute_gradients(self, model: nn.Module, compute: Callable[..., float]) -> float:
        """See `Technique.compute_gradients`."""
        for technique in _overriding(self.techniques, "compute_gradients"):
            compute = _computing(technique, model, compute)
        return compute()

    def change_gradients(self, model: nn.Module) -> None:
        """See `Technique.change_gradients`."""
        for technique in self.techniques:
            technique.change_gradients(model)

    def after_step(self, model: nn.Module, step: int) -> None:
        """See `Technique.after_step`."""
        for technique in self.techniques:
            technique.after_step(model, step)

    # --- evaluation and the end ----------------------------------------------------------------------------------

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        """Load the weights to evaluate and save into the model, and restore the trained ones on exit."""
        trained = self.load_averaged_weights(model)
        try:
            yield
        finally:
            _copy_into(model, trained)

    def load_averaged_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Load the weights to evaluate and save into the model; return those they replace."""
        replaced: dict[str, Tensor] = {}
        for technique in self.techniques:
            weights = dict(technique.evaluated_weights(model))
            tensors = _tensors(model)
            replaced |= {name: tensors[name].detach().clone() for name in weights if name not in replaced}
            _copy_into(model, weights)
        return replaced

    def after_training(self, task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> dict[str, Any]:
        """See `Technique.after_training`; returns the results of each technique by name."""
        told = {one.settings.name: one.after_training(task, outputs, examples) for one in self.techniques}
        return {name: found for name, found in told.items() if found}

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of every technique, with keys `technique/key`."""
        return {
            f"{technique.settings.name}/{key}": tensor.detach().cpu().contiguous()
            for technique in self.techniques
            for key, tensor in technique.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict`. Raises RunFolderError naming a technique whose state is missing."""
        for technique in self.techniques:
            prefix = f"{technique.settings.name}/"
            mine = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            try:
                technique.load_state_dict(mine)
            except (KeyError, RuntimeError, ValueError) as error:
                raise RunFolderError(f"the checkpoint does not hold the state of {technique.settings.name}") from error


def cross_entropy(logits: Tensor) -> Tensor:
    """Return -log softmax, float32 [items, classes]: the loss of each item for each class."""
    return -torch.log_softmax(logits.float(), dim=-1)


class _ChangedRows(Sequence[dict[str, Any]]):
    """Training rows as the techniques change them in an epoch."""

    def __init__(self, examples: Examples, techniques: list[Technique[Any]], seed: int, epoch: int) -> None:
        self.examples, self.techniques, self.seed, self.epoch = examples, techniques, seed, epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        row = dict(self.examples.features[index])
        for place, technique in enumerate(self.techniques):
            key = [self.seed, self.epoch, int(self.examples.row_ids[index]), place]
            row = technique.change_row(row, np.random.default_rng(key))
        return row


def _reason_against(settings: TechniqueSettings, task: Task[Any]) -> str | None:
    """Return why a technique does not support the task's model, or None."""
    if settings.needs_items and task.no_items:
        return task.no_items
    if settings.needs_embeddings and task.no_embeddings:
        return task.no_embeddings
    return settings.excluded.get(task.model_kind)


def _overriding(techniques: list[Technique[Any]], method: str) -> list[Technique[Any]]:
    return [one for one in techniques if getattr(type(one), method) is not getattr(Technique, method)]


def _computing(technique: Technique[Any], model: nn.Module, compute: Callable[..., float]) -> Callable[..., float]:
    return lambda **options: technique.compute_gradients(model, lambda **inner: compute(**{**options, **inner}))


def _halves(rows: int) -> tuple[slice, slice]:
    return slice(rows), slice(rows, None)


def _key(seed: int, step: int, row: int) -> int:
    words = np.random.SeedSequence([seed, step, row]).generate_state(1, np.uint64)
    return int(words[0])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _copy_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    tensors = _tensors(model)
    for name, tensor in weights.items():
        tensors[name].copy_(tensor)


def _described(technique: Technique[Any]) -> str:
    values = technique.settings.model_dump(exclude={"name"})
    settings = ", ".join(f"{key} {value}" for key, value in values.items())
    return f"{technique.settings.name} ({settings})" if settings else str(technique.settings.name)
