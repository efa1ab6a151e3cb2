"""Pretrained models with linear layers quantized to 4 or 8 bits, for training an adapter (QLoRA).

The pretrained weights are not trained, so they can be quantized: a model takes a quarter or an eighth of the memory.
The head and the adapter are trained in full precision.

Source: T. Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from sft_hf.core.errors import RecipeError

if TYPE_CHECKING:
    from sft_hf.core.recipe.sections import ModelSection


def check_quantization(section: ModelSection) -> None:
    """Raise RecipeError if this machine does not support `model.quantization`."""
    if section.quantization is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            "model.quantization needs bitsandbytes; pip install bitsandbytes, or leave it out (model.quantization=null)"
        )
    if not torch.cuda.is_available():
        raise RecipeError(
            "model.quantization needs a CUDA GPU, and there is none; leave it out (model.quantization=null)"
        )


def loading_options(section: ModelSection) -> dict[str, Any]:
    """Return additional arguments of `from_pretrained`; empty without `model.quantization`. Raises RecipeError."""
    wanted = section.quantization
    if wanted is None:
        return {}
    check_quantization(section)
    from transformers import BitsAndBytesConfig

    if wanted.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=wanted.quant_type,
            bnb_4bit_use_double_quant=wanted.use_double_quant,
            bnb_4bit_compute_dtype=getattr(torch, wanted.compute_dtype),
        )
    # Load the whole model on this process's GPU: 4-bit layers cannot be moved later.
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def is_quantized(model: Any) -> bool:
    """Whether a model was loaded with quantization. Its weights are not saved, as the pretrained model has them."""
    return bool(getattr(model, "is_quantized", False))


def check_quantized(model: Any, section: ModelSection) -> None:
    """Raise RecipeError for a model that should be quantized and is not: not all kinds support it."""
    if section.quantization is not None and not is_quantized(model):
        raise RecipeError(
            f"model.quantization: {type(model).__name__} of {section.name} cannot be quantized; leave it out, or use a "
            "model with a model.safetensors of Transformers and model.pooling: auto"
        )
