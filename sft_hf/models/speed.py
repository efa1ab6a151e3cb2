"""What makes a model train in less memory or less time, with the same mathematics."""

from __future__ import annotations

from typing import Any

import torch

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import TrainSection
from sft_hf.models.cpu.convolutions import has_depthwise, with_fast_backward
from sft_hf.models.cpu.kernels import with_cpu_kernels


def speed_up(model: Any, section: TrainSection) -> None:
    """Make a model's training faster in place, or smaller, as `train.gradient_checkpointing` and `torch_compile` say.

    Unless one of them is on, it gets the fast kernels of `cpu_kernels`, and `depthwise`'s where it has such layers.
    Compiling leaves the names of weights as they are, and dropout draws other numbers; `auto` compiles nothing, as it
    was measured to pay nowhere yet.
    Raises RecipeError for a model that cannot recompute its activations.
    """
    if section.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise RecipeError(
                f"train.gradient_checkpointing: {type(model).__name__} cannot recompute activations; leave it out, or "
                "use a smaller train.per_device_train_batch_size with more train.gradient_accumulation_steps"
            )
        # Its name changed in Transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        # Not reentrant: that kind needs an input with a gradient, which frozen embeddings do not give.
        enable({"use_reentrant": False})
    if section.torch_compile == "on":
        torch.use_deterministic_algorithms(True, warn_only=True)  # tells the compiler, too: `process` does not
        model.compile(dynamic=True)
    elif has_depthwise(model) and not section.gradient_checkpointing:  # which would recompute with other functions
        with_fast_backward(model)
    if section.torch_compile != "on" and not section.gradient_checkpointing:
        with_cpu_kernels(model)
