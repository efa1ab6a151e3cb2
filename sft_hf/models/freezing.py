"""Parts of a model that are not trained.

Frozen parameters get no gradient, no optimizer state and no weight decay. A module whose parameters are all frozen runs
in evaluation mode during training: without dropout, and with the pretrained batch norm statistics, which are not
updated. Otherwise a "frozen" backbone would still change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sft_hf.core.errors import RecipeError, did_you_mean

log = logging.getLogger("sft_hf")

BACKBONE = "backbone"
"""The pattern for everything but the head (a linear probe)."""


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters that match any of the patterns, see `matching`.

    Raises RecipeError for a pattern that matches nothing, or if nothing is left to train.
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
    """Return the names of the parameters that a pattern selects.

    A pattern is a shell glob for the name of a parameter, or of a module that contains it: `*.bias`,
    `bert.encoder.layer.[0-3]`, `model.encoder`; `*` also matches dots. "backbone" is everything but the head.

    Raises RecipeError for a pattern that matches nothing, with the closest name; `key` is the pattern's recipe key.
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
    """Return the names of the parameters outside the head: the pretrained ones, below the layers of the task.

    With `whole`, all parameters of a model without a head. Raises RecipeError for such a model otherwise; `key` is the
    recipe key for the message.
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
    """Return the names of the parameters of the head; empty for a model without a separate head (Whisper).

    The head is what Transformers adds to its base model, or timm's classifier, and all other newly initialized weights
    (`note_new_weights`). If no part has the name of the base model (CLIP's vision model alone), the head is these new
    weights, or if there are none, the whole model.
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
    """Record which weights are not pretrained: freezing them would freeze random numbers."""
    model.new_weights = tuple(names)  # type: ignore[assignment]


def evaluate_frozen_parts(model: nn.Module) -> None:
    """Set all modules whose parameters are all frozen to evaluation mode."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def set_modes(model: nn.Module) -> None:
    """Set a model to training mode, and its frozen parts to evaluation mode."""
    model.train()
    evaluate_frozen_parts(model)


def set_trained(model: nn.Module, names: Iterable[str], trained: bool) -> None:
    """Freeze or unfreeze parameters by name between two steps, and update the modes of the model's parts.

    The optimizer skips parameters without a gradient, including their weight decay.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].requires_grad_(trained)
    set_modes(model)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes, by name: trained parameters, and buffers (batch norm statistics)."""
    return {
        **{name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad},
        **dict(model.named_buffers()),
    }


def _modules_parameters(modules: nn.Module | Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of one module or several: timm's distilled models have two heads."""
    several = [modules] if isinstance(modules, nn.Module) else modules
    return [parameter for module in several for parameter in module.parameters()]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
