"""Read and prepare the data of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.recipe.sections import MEMORY
from sft_hf.core.sources.sources import Source, resolve_section
from sft_hf.data.columns import TARGET_KEYS
from sft_hf.data.examples import Examples
from sft_hf.data.findings import Finding
from sft_hf.data.groups import speaker_findings
from sft_hf.data.loading.loading import load_splits
from sft_hf.data.loading.media import MEDIA_KEYS
from sft_hf.data.loading.memory import splits_in_memory
from sft_hf.data.loading.roles import Splits
from sft_hf.data.preflight import find_duplicates
from sft_hf.data.splits import fill_missing_splits, held_out_roles, limit_splits
from sft_hf.engine.epochs import BatchSizes, InMemoryEpochs, StreamEpochs
from sft_hf.tasks.base import Task

log = logging.getLogger("sft_hf")


def of_memory(recipe: Recipe) -> Recipe:
    """Return the recipe of a run on rows in memory, without the source in `data`."""
    nothing = dict.fromkeys(("revision", "sha256", "config_name", "data_files"))
    data = recipe.data.model_copy(update={"name": MEMORY, "streaming": False, **nothing})
    return recipe.model_copy(update={"data": data})


def load_data(
    recipe: Recipe, task: Task[Any], model_source: Source | None, given: Mapping[str, Dataset] | None = None
) -> Splits:
    """Load the splits, fit the task on all of train (given a model source), hold out missing splits, limit rows.

    `given`: rows in memory by role, replacing the recipe's data. Raises DataError, SourceError, and RecipeError if the
    run's rows were in memory and are not given.
    """
    data = recipe.data
    columns = task.reader.columns() | ({"data.split_by": data.split_by} if data.split_by else {})
    if given is not None:
        loaded = splits_in_memory(data, given, columns)
    elif data.name == MEMORY:
        raise RecipeError(
            f"data.name: {MEMORY!r} means that the rows were passed from Python: pass the same rows again (splits=), "
            f"or name a file or folder (a folder of that name is ./{MEMORY})"
        )
    else:
        loaded = load_splits(data, resolve_section(data, "data"), columns)
    splits = task.read_labels(loaded)
    if model_source is not None:
        task.fit(splits.by_role["train"], splits.where["train"], model_source)
    splits = limit_splits(fill_missing_splits(splits, data, task.strata), data)
    for note in splits.notes:
        log.info("%s", note)
    sizes = {role: len(split) for role, split in splits.by_role.items() if isinstance(split, Dataset)}
    log.info("rows: %s", ", ".join(f"{role} {size}" for role, size in sizes.items()) or "a stream")
    return splits


def data_findings(task: Task[Any], splits: Splits, examples: Mapping[str, Examples]) -> list[Finding]:
    """Return findings about the rows before training: duplicates, contradictions, distribution of labels."""
    rows = {role: split for role, split in splits.by_role.items() if isinstance(split, Dataset)}
    columns = task.reader.loaded_columns()
    content = [column for key, column in columns.items() if key not in TARGET_KEYS]
    target = next((column for key, column in columns.items() if key in TARGET_KEYS), None)
    files = [column for key, column in columns.items() if key in MEDIA_KEYS]
    speakers = speaker_findings(rows, task.recipe.data.split_by)
    duplicates = find_duplicates(rows, content, target, files, held_out_roles(splits))
    return [*splits.findings, *duplicates, *speakers, *task.findings(examples)]


def prepare_split(task: Task[Any], split: Dataset, where: str) -> Examples:
    """Return a split's rows as model inputs, and log the notes on them."""
    examples = task.prepare(split, where)
    for note in examples.notes:
        log.info("%s", note)
    return examples


def training_data(recipe: Recipe, task: Task[Any], splits: Splits, num_processes: int) -> InMemoryEpochs | StreamEpochs:
    """Return the source of the training epochs. Raises RecipeError, DataError."""
    train, section, where = splits.by_role["train"], recipe.train, splits.where["train"]
    sizes = BatchSizes(
        section.per_device_train_batch_size,
        section.gradient_accumulation_steps,
        num_processes,
        recipe.seed,
        section.group_by_length,
    )
    if isinstance(train, IterableDataset):
        if not section.max_steps:
            raise RecipeError("data.streaming: a stream has no known length; set train.max_steps")

        def prepare(rows: Dataset) -> Examples:
            return task.prepare(task.read_rows(rows, where), where)

        return StreamEpochs(train, recipe.data.stream_buffer_size, prepare, sizes, where)
    data = InMemoryEpochs(prepare_split(task, train, where), sizes)
    batches = [micro.rows for step in data.epoch(0)[1] for rank in step.micro_batches for micro in rank]
    padding = task.padding(data.examples, batches)
    if padding is not None:
        log.info("padding: %.1f%% of the training positions", 100 * padding)
    return data
