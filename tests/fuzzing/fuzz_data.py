"""What a run does with its data, for the broken rows, images and recordings of fuzz.py."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

DATA_SETTINGS = {
    "delimiter": (",", ";", "\\t", "", "ab", "\n", '"', "\x00", "é", "a"),
    "quote_char": ("", "'", "\n", "é", ","),
    "skip_lines": (1, 30, 10**18),
    "text_column": ("label", "nothing", "", "row_id", "other"),
    "label_column": ("text", "nothing", "row_id", "other"),
    "text_pair_column": ("label", "text", "nothing"),
    "label_names": ([], ["sport"], ["sport", "money"], ["money", "sport", "x"], ["a", "a"], ["", " "], ["0", "1"]),
    "validation_fraction": (0, 0.5, 0.99, 1e-9),
    "test_fraction": (0, 0.5, 0.99, 1e-300),
    "max_train_samples": (1, 3, 2**62),
    "max_test_samples": (1, 2),
    "split_seed": (0, 2**62),
    "train_split": ("x", "", "validation"),
    "test_split": (None, "train", "x"),
    "data_files": ({"train": "*"}, {"train": "**"}, {"train": ""}, {"train": "train.csv"}),
    "streaming": (True,),
    "stream_buffer_size": (1, 5, 2**62),
}


def prepared(tools: Path, checkpoint: str, generator: random.Random, settings: dict[str, Any], **data: Any) -> str:
    """Everything that a run does with its data: read, fit, prepare, collate, compare, fingerprint."""
    from datasets import Dataset

    from sft_hf.core.errors import SftError
    from sft_hf.core.recipe.recipe import validate_recipe
    from sft_hf.core.recipe.registry import load_component
    from sft_hf.core.sources.sources import resolve
    from sft_hf.data.fingerprint import fingerprint
    from sft_hf.data.loading.media import MEDIA_KEYS
    from sft_hf.jobs.inputs import data_findings, load_data, prepare_split, training_data

    values = {"task": settings, "model": {"name": str(tools / checkpoint)}, "data": data, "train": {"max_steps": 3}}
    try:
        recipe = validate_recipe(values)
        task = load_component("tasks", settings["name"])(recipe)
        splits = load_data(recipe, task, resolve(recipe.model.name))
        train, windows = training_data(recipe, task, splits, 1).epoch(0)
        examples = {"train": train}
        for role, split in splits.by_role.items():
            if role != "train":
                examples[role] = prepare_split(task, split, splits.where[role])
        task.collate([train.features[row] for row in windows[0].micro_batches[0][0].rows])
        for prepared_split in examples.values():
            for row in range(min(len(prepared_split), 12)):
                task.collate([prepared_split.features[row]])
        whole = {role: split for role, split in splits.by_role.items() if isinstance(split, Dataset)}
        data_findings(task, splits, {role: examples[role] for role in whole})
        files = [column for key, column in task.reader.columns().items() if key in MEDIA_KEYS]
        for split in whole.values():
            fingerprint(split, list(task.reader.columns().values()), files)
    except SftError as error:
        if not str(error).strip() or len(str(error)) > 8000:
            raise AssertionError(f"not one line: {str(error)[:2000]!r}") from error
        return "refused"
    return "accepted"


def odd_settings(generator: random.Random, chance: float) -> dict[str, Any]:
    """Settings of the data section, a few of them odd."""
    found: dict[str, Any] = {}
    while generator.random() < chance:
        name = generator.choice(list(DATA_SETTINGS))
        found[name] = generator.choice(DATA_SETTINGS[name])
    return found
