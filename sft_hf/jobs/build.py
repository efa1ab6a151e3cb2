"""Build techniques, model, optimizer and schedule of a run from its recipe and prepared rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator

from sft_hf.core.errors import StorageError
from sft_hf.core.filesystem import free_bytes, human_bytes
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.run.folder import RunFolder
from sft_hf.core.sources.sources import Source
from sft_hf.engine.callbacks import Callbacks
from sft_hf.engine.epochs import InMemoryEpochs, StreamEpochs
from sft_hf.engine.optimization import build_optimizer, build_scheduler, schedule
from sft_hf.engine.resume import checkpoint
from sft_hf.engine.state import Training, TrainState
from sft_hf.engine.technique_stack import TechniqueStack
from sft_hf.models.adapters.attach import attach
from sft_hf.models.adapters.files import Adapter
from sft_hf.models.freezing import freeze
from sft_hf.models.head_rate import with_head_scale
from sft_hf.models.speed import speed_up
from sft_hf.tasks.base import Task
from sft_hf.techniques.base import Context

log = logging.getLogger("sft_hf")


def count_steps(recipe: Recipe, data: InMemoryEpochs | StreamEpochs) -> int:
    """Return the number of optimizer steps of a run."""
    train = recipe.train
    if train.max_steps or not isinstance(data, InMemoryEpochs):
        return train.max_steps or 0
    return max(1, math.ceil(train.num_train_epochs * data.steps_per_epoch))


def build_techniques(
    recipe: Recipe, task: Task[Any], data: InMemoryEpochs | StreamEpochs, splits: Sequence[str]
) -> TechniqueStack:
    """Return the recipe's techniques, and register their data hooks with `data`. Raises RecipeError."""
    whole = data if isinstance(data, InMemoryEpochs) else None
    counts = None if whole is None else task.scorer.label_counts(whole.examples.references)
    context = Context(
        recipe=recipe,
        task=task,
        num_steps=count_steps(recipe, data),
        steps_per_epoch=None if whole is None else whole.steps_per_epoch,
        label_counts=None if counts is None else list(counts.values()),
        schedule=partial(schedule, recipe.optim),
        splits=tuple(splits),
    )
    techniques = TechniqueStack(recipe, context)
    techniques.use_data(data)
    return techniques


def build_training(
    recipe: Recipe,
    task: Task[Any],
    source: Source,
    accelerator: Accelerator,
    data: InMemoryEpochs | StreamEpochs,
    techniques: TechniqueStack,
    *,
    log_line: Callable[[dict[str, Any]], None],
    evaluate: Callable[[TrainState], bool],
    save: Callable[[TrainState], None],
    callbacks: Callbacks,
) -> tuple[Training, Adapter | None]:
    """Load the pretrained model and build the `Training`; the adapter is None without `peft`.

    `log_line`, `evaluate`, `save` and `callbacks` are called by the training loop, see `Training`. Raises
    CheckpointError, RecipeError.
    """
    model = task.build_model(source, recipe.model)
    freeze(model, recipe.train.freeze)
    model, adapter = attach(model, recipe, task.peft_task_type, source)
    techniques.prepare_model(model)
    speed_up(model, recipe.train, accelerator.device)
    given = techniques.learning_rate_scales(model)
    scales = with_head_scale(model, recipe.optim, given)
    if scales != given:
        rate = max(scales.values()) * recipe.optim.learning_rate
        log.info("learning rate of the new head: %g (optim.head_learning_rate)", rate)
    num_steps = count_steps(recipe, data)
    optimizer = build_optimizer(model, recipe.optim, scales)
    scheduler = build_scheduler(optimizer, recipe.optim, num_steps, techniques.wrap_schedule)
    # Not wrapped for distributed training: `engine.step` sums the gradients after every rank has processed its rows.
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    training = Training(
        recipe=recipe,
        task=task,
        model=prepared,
        optimizer=accelerator.prepare_optimizer(optimizer),
        scheduler=scheduler,
        accelerator=accelerator,
        data=data,
        techniques=techniques,
        num_steps=num_steps,
        log=log_line,
        evaluate=evaluate,
        save=save,
        callbacks=callbacks,
    )
    return training, adapter


def check_space(training: Training, folder: RunFolder) -> None:
    """Warn if the disk may fill up during the run. Raises StorageError if not even one checkpoint fits."""
    one, most = checkpoint.expected_bytes(training.model, training.techniques.state_dict())
    keep = training.recipe.checkpoint.save_total_limit
    most += (keep - 1) * one
    free = free_bytes(folder.path)
    if free < one:
        raise StorageError(
            f"{folder.path}: a checkpoint needs about {human_bytes(one)}, and {human_bytes(free)} are free"
        )
    if free < most:
        log.warning(
            "%s: %s are free, and the run may need %s (%d checkpoints, the best weights, the model)",
            folder.path,
            human_bytes(free),
            human_bytes(most),
            keep + 1,
        )
