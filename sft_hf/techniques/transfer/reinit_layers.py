"""Reinitialize the top layers of a pretrained model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.models.freezing import note_new_weights
from sft_hf.models.layers import Stack, layer_stacks
from sft_hf.techniques.base import Technique
from sft_hf.techniques.transfer.settings import ReinitLayersSettings

SALT = 70


def top_names(stack: Stack, num_layers: int, pooler: bool) -> list[str]:
    """Return the parameters of the top layers of a stack, and of the pooler above them.

    Source: T. Zhang et al., Revisiting Few-sample BERT Fine-tuning, 2021, section 5.
    """
    layers = {name for names in stack.layers[len(stack.layers) - num_layers :] for name in names}
    poolers = {name for name in stack.layers[-1] if "pooler" in name.split(".")}
    return sorted(layers | poolers if pooler else layers - poolers)


@torch.no_grad()
def reinitialise(model: Any, names: Collection[str], seed: int) -> None:
    """Reinitialize parameters with the model's own initialization, and batch norm's statistics.

    Uses `_init_weights` in Transformers; for timm, whose initialization is specific to each model, the modules'
    `reset_parameters`. Does not affect other random numbers. Raises RecipeError for parameters of a timm model that
    cannot be reinitialized.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([SALT, seed]).generate_state(1)[0]))
        for prefix, module in _wholly_within(model, set(names)):
            own = [name for name, _ in module.named_parameters(recurse=False)]
            if not hasattr(model, "timm_model"):
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    tensor.__dict__.pop("_is_hf_initialized", None)  # otherwise _init_weights skips loaded tensors
                model._init_weights(module)
            elif draw := getattr(module, "reset_parameters", None):
                draw()
            elif own:
                raise RecipeError(f"techniques: reinit_layers: {prefix}.{own[0]} cannot be reinitialized")


def _wholly_within(model: nn.Module, wanted: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules all of whose parameters are wanted, inner modules before outer ones."""
    for prefix, module in reversed(list(model.named_modules())):
        names = {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        if names and names <= wanted:
            yield prefix, module


class ReinitLayers(Technique[ReinitLayersSettings]):
    """Reinitialize the top layers, which are specialized for the pretraining task.

    For few rows (under about 10,000) and encoders like BERT, where it improves results and reduces their variance
    between seeds. A final norm belongs to the top layer; of an encoder-decoder, the decoder's layers are reinitialized.
    No extra cost. New layers count as part of the head, for lp_ft and other techniques.
    """

    paper = "T. Zhang et al., Revisiting Few-sample BERT Fine-tuning, 2021, section 5"
    order = 1  # before other techniques store the pretrained weights or look for new ones
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Reinitialize the layers. Raises RecipeError if there are too few, or if they are frozen."""
        stack = layer_stacks(model)[-1]
        wanted, most = self.settings.num_layers, len(stack.layers)
        if wanted > most:
            raise RecipeError(f"techniques: reinit_layers: num_layers: {type(model).__name__} has {most} layers")
        names = top_names(stack, wanted, self.settings.pooler)
        parameters = dict(model.named_parameters())
        if frozen := [name for name in names if not parameters[name].requires_grad]:
            raise RecipeError(f"techniques: reinit_layers: {frozen[0]} would stay random, since it is not trained")
        reinitialise(model, names, self.context.recipe.seed)
        note_new_weights(model, sorted({*getattr(model, "new_weights", ()), *names}))
