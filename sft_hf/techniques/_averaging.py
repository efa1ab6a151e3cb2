"""Averages of weights over training steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def move_towards(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], share: float) -> None:
    """Set a <- a + share (w - a) in place, by name; integers (batch norm's counts) are copied."""
    for name, value in weights.items():
        if average[name].is_floating_point():
            average[name].lerp_(value.to(average[name].dtype), share)
        else:
            average[name].copy_(value)
