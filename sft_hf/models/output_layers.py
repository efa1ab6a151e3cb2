"""The output layer of a model: finding it, and folding a scale and a shift into its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sft_hf.core.errors import CheckpointError, TrainingError
from sft_hf.models.freezing import note_new_weights

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_output_layers(model: nn.Module, outputs: int, forward: Callable[[], Tensor]) -> list[str]:
    """Return the names of the layers whose weights scale the model's outputs and nothing else.

    This is the last linear layer (or 1 x 1 convolution) with as many outputs as the model, or all such layers if the
    model averages several heads, verified by a forward pass.

    Args:
        model: in any mode, which is restored.
        outputs: the number of outputs per row.
        forward: runs the model on one row, and returns its outputs [1, outputs].

    Raises CheckpointError if there are no such layers.
    """
    found = [name for name, module in model.named_modules() if _gives(module, outputs)]
    candidates = [found[-1:], found] if len(found) > 1 else [found]
    with _evaluating(model), torch.no_grad():
        for names in candidates:
            if names and _gives_the_outputs([model.get_submodule(name) for name in names], forward):
                return names
    raise CheckpointError(
        f"{type(model).__name__} has no linear layer that gives its outputs, which regression needs; use another model"
    )


def _gives(module: nn.Module, outputs: int) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.out_channels == outputs and module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear) and module.out_features == outputs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _gives_the_outputs(layers: list[Any], forward: Callable[[], Tensor]) -> bool:
    """Whether the outputs equal the biases if the weights are 0, or without biases, double with doubled weights.

    A new head may be zero, so test weights are used, and the original ones restored.
    """
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        if all(layer.bias is not None for layer in layers):
            for tensor in tensors:
                tensor.fill_(0.25 if tensor.ndim == 1 else 0.0)
            outputs = forward().float()
            return torch.equal(outputs, torch.full_like(outputs, 0.25))
        for tensor in tensors:  # not all alike: normalized inputs would cancel
            tensor.copy_((torch.arange(tensor.numel()) % 5 - 1.5).reshape(tensor.shape))
        once = forward().float()
        for tensor in tensors:
            tensor.mul_(2)
        return bool(once.any()) and torch.allclose(forward().float(), 2 * once, rtol=1e-4)
    finally:
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)


def have_bias(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether all of the layers have a bias, to which a shift can be added."""
    return all(layer.bias is not None for name in names for layer in _layers(model, name))


@torch.no_grad()
def rescale(model: nn.Module, names: Iterable[str], scale: Tensor, shift: Tensor) -> None:
    """Change layers in place, so that the model's outputs y become scale * y + shift.

    Args:
        model: with or without an adapter; if a layer has a trained copy, the copy is changed.
        names: from `find_output_layers`.
        scale, shift: float64 [outputs]; shift is 0 for layers without a bias.
    """
    for name in names:
        for layer in _layers(model, name):
            weight, bias = layer.weight, layer.bias
            shape = (-1, *[1] * (weight.ndim - 1))
            weight.copy_((weight.cpu().double() * scale.view(shape)).to(weight.dtype))  # Apple's GPUs have no double
            if bias is not None:
                bias.copy_((bias.cpu().double() * scale + shift).to(bias.dtype))


@torch.no_grad()
def start_anew(model: Any, names: Iterable[str]) -> None:
    """Reinitialize layers like a new head, and record that their weights are new."""
    for name in names:
        for layer in _layers(model, name):
            nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", None) or 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    new = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    note_new_weights(model, dict.fromkeys([*getattr(model, "new_weights", ()), *new]))


def _layers(model: nn.Module, name: str) -> list[Any]:
    """Return the layer of this name; with PEFT, its trained copy.

    Raises TrainingError if there is no such layer any more.
    """
    paths = {path.replace(".modules_to_save.default", ""): path for path, _ in model.named_modules()}
    found = [path for plain, path in paths.items() if plain == name or plain.endswith(f".{name}")]
    layers = [model.get_submodule(path) for path in found]
    if not layers:
        raise TrainingError(f"{type(model).__name__} no longer has the layer {name!r}, whose outputs must be rescaled")
    return layers
