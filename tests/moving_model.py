"""A small model whose weights and statistics move, for what averages them."""

from __future__ import annotations

import torch
from torch import nn


def model_with_statistics() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def move(model: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(5, 3))
