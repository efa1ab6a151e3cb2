"""Context managers around the forward passes of a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


def surround_forward(model: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Run each forward pass of a model inside a new `context()`, which is also left after errors."""
    entered: list[AbstractContextManager[Any]] = []

    def enter(*_: Any) -> None:
        entered.append(context())
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
