"""Faster or smaller training with the same mathematics: recomputed activations, compilation, CPU kernels."""

from __future__ import annotations

from typing import Any

import torch

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.recipe import TrainSection
from sft_hf.models.cpu.convolutions import has_depthwise, with_fast_backward
from sft_hf.models.cpu.kernels import with_cpu_kernels


def uses_cpu_kernels(section: TrainSection, device: torch.device) -> bool:
    """Whether the functions of `sft_hf.models.cpu` replace PyTorch's on this device."""
    return section.cpu_kernels == "auto" and device.type == "cpu"


def speed_up(model: Any, section: TrainSection, device: torch.device) -> None:
    """Reduce the time or memory of a model's training, in place (`train.gradient_checkpointing`, `torch_compile`).

    If neither is on, a model trained on a CPU uses the kernels of `sft_hf.models.cpu`. Compiling does not change the
    names of weights, but dropout draws other numbers; `auto` compiles nothing, as no measurement has shown a benefit.
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
        # Not reentrant: that kind needs an input with a gradient, which frozen embeddings do not have.
        enable({"use_reentrant": False})
    if section.torch_compile == "on":
        torch.use_deterministic_algorithms(True, warn_only=True)  # also for the compiler, unlike in `process`
        model.compile(dynamic=True)
    # Recomputed activations would not pass through the same functions as the first time.
    elif not section.gradient_checkpointing and uses_cpu_kernels(section, device):
        if has_depthwise(model):
            with_fast_backward(model)
        with_cpu_kernels(model)
