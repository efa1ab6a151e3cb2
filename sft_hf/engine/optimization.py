"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from sft_hf.core.errors import RecipeError, did_you_mean
from sft_hf.core.recipe.recipe import OptimSection

Schedule = Callable[[int], float]

# These require a closure, sparse gradients, or parameters that are all matrices.
_UNSUPPORTED = {"lbfgs", "sparseadam", "muon", "optimizer"}

EIGHT_BIT = "adamw_8bit"
"""AdamW of bitsandbytes, with one byte per number of optimizer state (Dettmers et al. 2022, 8-bit Optimizers)."""


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the supported optimizers by the lower-case name of the torch.optim class."""
    found = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    return {name: value for name, value in found.items() if name not in _UNSUPPORTED}


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay (with or without) and learning rate.

    Biases and the gains of normalization layers (every parameter with fewer than two dimensions) have no weight decay,
    which would pull them to zero without a regularizing effect (Goyal et al. 2017, section 5.1).

    Args:
        scales: factors of the learning rate by parameter name; 1 for those left out.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = (scales or {}).get(name, 1.0)
            groups.setdefault((-scale, parameter.ndim < 2), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[1] else weight_decay, "lr": -key[0] * learning_rate}
        for key in sorted(groups, key=lambda key: (key[0] != -1.0, key))  # the full rate first: the log reports it
    ]


def check_optimizer(section: OptimSection) -> type[torch.optim.Optimizer]:
    """Return the class of the recipe's optimizer. Raises RecipeError for an unknown name or argument."""
    classes = optimizer_classes()
    if section.name not in (*classes, EIGHT_BIT):
        hint = did_you_mean(section.name, [*classes, EIGHT_BIT], limit=20)
        raise RecipeError(f"optim.name: no optimizer {section.name!r}; {hint}")
    cls = _eight_bit_adamw() if section.name == EIGHT_BIT else classes[section.name]
    allowed = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr", "weight_decay")]
    for key in section.args:
        if key not in allowed:
            raise RecipeError(
                f"optim.args.{key}: {cls.__name__} has no such argument; {did_you_mean(key, allowed, 20)}"
            )
    return cls


def _eight_bit_adamw() -> type[torch.optim.Optimizer]:
    """Return the class from bitsandbytes after testing one step on this device.

    Raises RecipeError if the package is missing or has no kernels for this device.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise RecipeError(
            f"optim.name: {EIGHT_BIT} needs bitsandbytes; pip install bitsandbytes, or use adamw"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tried = nn.Parameter(torch.zeros(4096, device=device))  # smaller parameters have 32-bit state
    tried.grad = torch.ones_like(tried)
    try:
        AdamW8bit([tried]).step()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"optim.name: {EIGHT_BIT} does not work on this {device}; use adamw ({reason})") from None
    found: type[torch.optim.Optimizer] = AdamW8bit
    return found


def build_optimizer(
    model: nn.Module, section: OptimSection, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the model's trainable parameters; `scales` as in `parameter_groups`.

    SGD has momentum 0.9 unless `optim.args` sets another. Adam, AdamW and SGD use torch's fused step.
    Raises RecipeError for an unknown name or argument.
    """
    cls = check_optimizer(section)
    args: dict[str, Any] = {"momentum": 0.9} if section.name == "sgd" else {}
    if section.name in ("adam", "adamw", "sgd"):
        args["fused"] = True
    args.update({key: tuple(value) if isinstance(value, list) else value for key, value in section.args.items()})
    if args.get("foreach") or args.get("differentiable"):
        args.pop("fused", None)
    groups = parameter_groups(model, section.weight_decay, section.learning_rate, scales)
    try:
        optimizer = cls(groups, lr=section.learning_rate, **args)  # type: ignore[call-arg]
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(f"optim: {cls.__name__} refuses these settings: {error}") from None
    if section.name == "sgd":
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Initialize the momentum of parameters that join their group late to zero.

    Torch's fused SGD fails if only some parameters have a momentum buffer: after unfreezing, or with layerdrop.
    """
    for group in optimizer.param_groups:
        used = [parameter for parameter in group["params"] if parameter.grad is not None]
        new = [parameter for parameter in used if optimizer.state[parameter].get("momentum_buffer") is None]
        if group["momentum"] and len(new) < len(used):
            for parameter in new:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    section: OptimSection,
    num_steps: int,
    wrap: Callable[[Schedule], Schedule] | None = None,
) -> Any:
    """Return the learning-rate scheduler over `num_steps` optimizer steps, to be stepped once after each.

    `wrap` transforms the schedule.
    """
    factor = schedule(section, num_steps)
    return LambdaLR(optimizer, wrap(factor) if wrap else factor)


def schedule(section: OptimSection, num_steps: int) -> Schedule:
    """Return the recipe's schedule: step (0-based) -> factor of the peak learning rate."""
    # Schedules with a minimum rate read the peak from the optimizer.
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=section.learning_rate)
    scheduler = get_scheduler(
        section.lr_scheduler_type,
        stand_in,
        num_warmup_steps=round(section.warmup_ratio * num_steps),
        num_training_steps=num_steps,
    )
    return scheduler.lr_lambdas[0]  # type: ignore[no-any-return]
