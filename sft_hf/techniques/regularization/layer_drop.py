"""LayerDrop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.errors import RecipeError
from sft_hf.models.blocks import block_stacks
from sft_hf.techniques.base import Technique
from sft_hf.techniques.regularization.settings import LayerDropSettings

SALT = 7  # separates these draws from other techniques'


def dropped_layers(layers: int, probability: float, seed: int, step: int) -> np.ndarray:
    """Return which layers are skipped in a step, bool [layers]: each independently with the given probability.

    Source: A. Fan, E. Grave and A. Joulin, Reducing Transformer Depth on Demand with Structured Dropout, 2020, section
    3.2.
    """
    return np.random.default_rng([SALT, seed, step]).random(layers) < probability


class LayerDrop(Technique[LayerDropSettings]):
    """Skip whole layers at random during training, which regularizes and allows pruning later.

    All rows of a step skip the same layers, on all processes, without scaling. The gradient of a skipped layer is zero
    in that step. Evaluation uses all layers. Only trained layers whose output has the shape of their input are skipped.
    """

    paper = (
        "A. Fan, E. Grave and A. Joulin, Reducing Transformer Depth on Demand with Structured Dropout, 2020, "
        "section 3.2"
    )
    order = 5  # before techniques that change gradients
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Make every trained layer skippable. Raises RecipeError for a model without repeated layers."""
        layers = [layer for stack in block_stacks(model) for _, layer in stack]
        if not layers:
            raise RecipeError(f"techniques: layer_drop: {type(model).__name__} has no repeated layers to skip")
        self.switches = [
            _Switch(layer) if any(parameter.requires_grad for parameter in layer.parameters()) else None
            for layer in layers
        ]

    def before_step(self, model: nn.Module, step: int) -> None:
        """Draw the layers to skip in the step."""
        drawn = dropped_layers(len(self.switches), self.settings.probability, self.context.recipe.seed, step)
        for switch, off in zip(self.switches, drawn, strict=True):
            if switch is not None:
                switch.off = bool(off)

    def change_gradients(self, model: nn.Module) -> None:
        """Set the gradients of skipped layers to zero: torch's fused SGD fails if some parameters have none."""
        for switch in self.switches:
            if switch is not None and switch.off:
                for parameter in switch.layer.parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)


class _Switch:
    """Replaces a layer's `forward`; returns the layer's input while it is off and the layer is in training mode.

    Until it is known that the layer returns only hidden states, a skipped layer still runs, and its hidden states are
    replaced. It runs with forked random states, so that the results are the same either way.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.off = layer, False
        self.forward: Callable[..., Any] = layer.forward
        self.returns_states_alone = False
        layer.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not (self.off and self.layer.training):
            return self.forward(*arguments, **options)
        states = arguments[0] if arguments else options.get("hidden_states")
        if self.returns_states_alone:
            return states
        devices = [states.device] if isinstance(states, Tensor) and states.is_cuda else []
        with torch.random.fork_rng(devices):
            output = self.forward(*arguments, **options)
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(states, Tensor) or not isinstance(first, Tensor) or first.shape != states.shape:
            return output
        self.returns_states_alone = isinstance(output, Tensor)
        return (states, *output[1:]) if isinstance(output, tuple) else states
