"""The recipe that most tests vary: a tiny model and tiny data, in float32 and on one thread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_hf.core.recipe.recipe import Recipe, apply_overrides, validate_recipe

OPTIM = {"text_classification": 1e-2, "image_classification": 1e-2, "speech_recognition": 5e-3}
BATCH = {"text_classification": 8, "image_classification": 8, "speech_recognition": 4}


def tiny_recipe(task: str, checkpoint: Path, data: Path, output_dir: Path, /, **changes: Any) -> Recipe:
    """A recipe of two epochs; `changes` name their keys with two underscores, as train__max_steps=3."""
    recipe = {
        "task": {"name": task},
        "model": {"name": str(checkpoint)},
        "data": {"name": str(data)},
        "train": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": BATCH[task],
            "mixed_precision": "no",
            "num_threads": 1,
        },
        "optim": {"learning_rate": OPTIM[task]},
        "output_dir": str(output_dir),
    }
    if task == "text_classification":
        recipe["task"]["max_length"] = 32
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    return validate_recipe(apply_overrides(recipe, overrides))
