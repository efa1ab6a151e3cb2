"""The examples that a recipe of image classification leads to."""

from __future__ import annotations

from sft_hf.core.sources.sources import resolve
from sft_hf.tasks.image.task import ImageClassification


def prepared(recipe):
    from sft_hf.jobs.inputs import load_data

    task = ImageClassification(recipe)
    splits = load_data(recipe, task, resolve(recipe.model.name))
    return task, {role: task.prepare(split, splits.where[role]) for role, split in splits.by_role.items()}
