"""The two families of recognizers, and the examples that a recipe for one of them leads to."""

from __future__ import annotations

from sft_hf.core.recipe.registry import load_component
from sft_hf.core.sources.sources import resolve

FAMILIES = ["whisper", "wav2vec2"]


def opened(recipe):
    """The task of a recipe, its processor loaded and its train split prepared."""
    from sft_hf.jobs.inputs import load_data

    task = load_component("tasks", "speech_recognition")(recipe)
    source = resolve(recipe.model.name)
    splits = load_data(recipe, task, source)
    return task, task.prepare(splits.by_role["train"], splits.where["train"]), source
