"""Supervised fine-tuning recipes for the Hugging Face ecosystem.

    import sft_hf as sft

    run = sft.finetune(task="text_classification", model="sentence-transformers/all-MiniLM-L6-v2",
                       train=df, text="review", label="stars", epochs=3, techniques=["mixup"], output_dir="runs/x")
    run.metrics["test"]["accuracy"]
    run.predict(["great", "awful"])

    sft.finetune("text", learning_rate=1e-4)  # a recipe, with a key changed
    sft.Run("runs/x").report()                # a run that is finished

The names below are imported when they are first used, so that `import sft_hf` costs nothing.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "darwin":
    # The few operations that torch lacks for Apple's GPUs, such as the CTC loss, run on the CPU. torch reads this once.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

if TYPE_CHECKING:
    from sft_hf.core.errors import SftError, UserError
    from sft_hf.core.recipe.recipe import Recipe, load_recipe
    from sft_hf.engine.callbacks import Callback
    from sft_hf.jobs.api import finetune
    from sft_hf.jobs.job import TrainingJob
    from sft_hf.jobs.run import Run, evaluate, predict, predict_files

__version__ = "0.2.0"

_HOMES = {
    "Callback": "sft_hf.engine.callbacks",
    "Recipe": "sft_hf.core.recipe.recipe",
    "Run": "sft_hf.jobs.run",
    "SftError": "sft_hf.core.errors",
    "TrainingJob": "sft_hf.jobs.job",
    "UserError": "sft_hf.core.errors",
    "evaluate": "sft_hf.jobs.run",
    "finetune": "sft_hf.jobs.api",
    "load_recipe": "sft_hf.core.recipe.recipe",
    "predict": "sft_hf.jobs.run",
    "predict_files": "sft_hf.jobs.run",
}

__all__ = [
    "Callback",
    "Recipe",
    "Run",
    "SftError",
    "TrainingJob",
    "UserError",
    "evaluate",
    "finetune",
    "load_recipe",
    "predict",
    "predict_files",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sft_hf' has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from sft_hf.core.extras import how_to_install

        if (how := how_to_install(error)) is None:
            raise
        raise ModuleNotFoundError(f"sft_hf.{name}: {how}", name=error.name) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
