"""Parts of a model that are not trained.

Frozen parameters get no gradient, no optimizer state and no weight decay. A module all of whose parameters are frozen
runs as in evaluation while the rest trains: no dropout inside it, and batch norm normalizes with the checkpoint's
statistics and leaves them as they are. Else a backbone that is "frozen" would go on changing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sft_hf.core.errors import RecipeError, did_you_mean

log = logging.getLogger("sft_hf")

BACKBONE = "backbone"
"""The pattern that stands for everything but the head: a linear probe."""


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters that some pattern matches; see `matching`.

    Raises RecipeError for a pattern that matches nothing, and where nothing is left to train.
    """
    if not patterns:
        return
    parameters = dict(model.named_parameters())
    frozen = {name for pattern in patterns for name in matching(model, pattern)}
    for name in frozen:
        parameters[name].requires_grad_(False)
    left = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    if not left:
        raise RecipeError(
            f"train.freeze: {', '.join(patterns)}: nothing is left to train; leave a part of the model out"
        )
    log.info("frozen: %d of %d parameters", sum(p.numel() for p in parameters.values()) - left, _size(model))


def matching(model: nn.Module, pattern: str, key: str = "train.freeze") -> list[str]:
    """Return the names of the parameters that a pattern means.

    A pattern is a shell glob on a parameter's name, or on that of a module that holds it: `*.bias`,
    `bert.encoder.layer.[0-3]`, `model.encoder`; `*` takes dots too. "backbone" is everything but the head.

    Raises RecipeError for a pattern that matches nothing, with the nearest name; `key` is its place in the recipe.
    """
    names = [name for name, _ in model.named_parameters()]
    if pattern == BACKBONE:
        return backbone_names(model, key=key)
    found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    if not found:
        modules = {name.rpartition(".")[0] for name in names}
        modules |= {".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 2)}
        known = [BACKBONE, *sorted(modules - {""}, key=lambda name: (name.count("."), name)), *names]
        raise RecipeError(f"{key}: {pattern!r} matches no parameter; {did_you_mean(pattern, known)}")
    return found


def backbone_names(model: nn.Module, *, whole: bool = False, key: str = "train.freeze") -> list[str]:
    """Return the parameters outside the head: those that came with the checkpoint, below the layers of the task.

    A model without a head is all backbone where `whole` says so. Raises RecipeError for one otherwise;
    `key` is what the recipe asks it for.
    """
    names = [name for name, _ in model.named_parameters()]
    head = set(head_names(model))
    if whole and not head:
        return names
    if not head or len(head) == len(names):
        raise RecipeError(
            f"{key}: {type(model).__name__} has no head apart from its backbone; name the parts to freeze, e.g. "
            f"{names[0].rpartition('.')[0]}"
        )
    return [name for name in names if name not in head]


def head_names(model: nn.Module) -> list[str]:
    """Return the parameters of the head; none for a model without a separate head (Whisper).

    The head is what Transformers puts on top of its base model, or timm's own classifier, and whatever else the
    checkpoint had no weights for (`note_new_weights`). Where no part has the base model's name (CLIP's vision model
    alone), it is these new weights, or without any, all of the model.
    """
    names = [name for name, _ in model.named_parameters()]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    head = {name for name in names if not name.startswith(prefix)}
    inner = getattr(model, "timm_model", None)
    if inner is not None:
        classifier = {id(parameter) for parameter in _modules_parameters(inner.get_classifier())}
        head = {name for name, parameter in model.named_parameters() if id(parameter) in classifier}
    new = set(names) & set(getattr(model, "new_weights", ()))
    head = new if new and len(head) == len(names) else head | new
    return [name for name in names if name in head]


def note_new_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Remember which weights were not in the checkpoint: freezing them would freeze random numbers."""
    model.new_weights = tuple(names)  # type: ignore[assignment]


def evaluate_frozen_parts(model: nn.Module) -> None:
    """Put every module all of whose parameters are frozen, and all that is in it, in evaluation mode."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def set_modes(model: nn.Module) -> None:
    """Put a model in training mode, and its frozen parts in evaluation mode."""
    model.train()
    evaluate_frozen_parts(model)


def set_trained(model: nn.Module, names: Iterable[str], trained: bool) -> None:
    """Freeze or unfreeze parameters by name between two steps, and put the parts of the model in the modes they need.

    The optimizer skips what has no gradient, weight decay included.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].requires_grad_(trained)
    set_modes(model)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what training moves, by name: parameters that are trained, and buffers, which batch norm moves along."""
    return {
        **{name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad},
        **dict(model.named_buffers()),
    }


def _modules_parameters(modules: nn.Module | Sequence[nn.Module]) -> list[nn.Parameter]:
    """timm's models with two heads (distilled ones) return both."""
    several = [modules] if isinstance(modules, nn.Module) else modules
    return [parameter for module in several for parameter in module.parameters()]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
