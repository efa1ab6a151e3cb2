"""The learning rate of a head that the pretrained model does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_hf.core.recipe.recipe import OptimSection

PEFT_COPY = ".modules_to_save.default"
"""Part of the name of a head that PEFT trains together with an adapter."""


def with_head_scale(model: Any, section: OptimSection, scales: Mapping[str, float]) -> dict[str, float]:
    """Return learning rate factors by parameter name: those of techniques, multiplied by that of a new head.

    The factor of the head comes from `optim.head_learning_rate`. With "auto", a head that has a factor from a technique
    keeps that factor, and a head trained with an adapter has the adapter's rate.
    """
    auto = section.head_learning_rate == "auto"
    given = None if auto else section.head_learning_rate / section.learning_rate  # type: ignore[operator]
    factor = float(getattr(model, "head_rate_scale", 1.0)) if given is None else given
    found = dict(scales)
    if factor == 1.0:
        return found
    new, backbone = set(getattr(model, "new_weights", ())), f"{getattr(model, 'base_model_prefix', '') or '-'}."
    for name, parameter in model.named_parameters():
        own = name if auto else name.removeprefix("base_model.").replace(PEFT_COPY, "")
        if own not in new or own.startswith(backbone) or not parameter.requires_grad:
            continue
        if not auto or found.get(name, 1.0) == 1.0:
            found[name] = found.get(name, 1.0) * factor
    return found
