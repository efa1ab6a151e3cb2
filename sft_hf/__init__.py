"""Supervised fine-tuning recipes for the Hugging Face ecosystem.

    from sft_hf import finetune, load_recipe, predict

    result = finetune(load_recipe("text", ["optim.learning_rate=1e-4"]))  # or finetune("text")
    for row in predict(result.output_dir, ["oil prices rose again"]):
        print(row["prediction"], row["confidence"])

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
    from sft_hf.jobs.finetune import finetune
    from sft_hf.jobs.inference import evaluate_run as evaluate
    from sft_hf.jobs.inference import predict_inputs as predict
    from sft_hf.jobs.job import TrainingJob
    from sft_hf.jobs.results import RunResult

__version__ = "0.2.0"

_HOMES = {
    "Recipe": "sft_hf.core.recipe.recipe",
    "load_recipe": "sft_hf.core.recipe.recipe",
    "finetune": "sft_hf.jobs.finetune",
    "RunResult": "sft_hf.jobs.results",
    "evaluate": "sft_hf.jobs.inference:evaluate_run",
    "predict": "sft_hf.jobs.inference:predict_inputs",
    "SftError": "sft_hf.core.errors",
    "TrainingJob": "sft_hf.jobs.job",
    "UserError": "sft_hf.core.errors",
}

__all__ = [
    "Recipe",
    "RunResult",
    "SftError",
    "TrainingJob",
    "UserError",
    "evaluate",
    "finetune",
    "load_recipe",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sft_hf' has no attribute {name!r}")
    import importlib

    module, _, attribute = _HOMES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute or name)
    except ModuleNotFoundError as error:
        from sft_hf.core.extras import how_to_install

        if (how := how_to_install(error)) is None:
            raise
        raise ModuleNotFoundError(f"sft_hf.{name}: {how}", name=error.name) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
