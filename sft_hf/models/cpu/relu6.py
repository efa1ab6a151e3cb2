"""ReLU6 behind batch norm, in bf16 on CPUs: the same values, found by comparing whole numbers.

torch widens bf16 to float32 to compare, and rounds back; that took as long as the batch norm before it. Read as 16-bit
whole numbers, bf16 values >= 0 have the order of their values, and those below 0 are negative: clamping these is four
times as fast. It would make a number of what is none (NaN), so it is done only where there is none: batch norm's
output x alpha + beta, x its input, has none if alpha, beta and the mean over x are finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SIX = 0x40C0
"""6 in bf16, as a whole number."""


class Relu6:
    """Takes a forward pass's calls of batch norm and ReLU6."""

    def __init__(self) -> None:
        self._clean: Tensor | None = None  # what batch norm gave last, if it holds no NaN

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what one of these functions gives; `NotImplemented` for a call that is left to torch."""
        if func is functional.batch_norm:
            return self._normalize(*args, **kwargs)
        if func is functional.hardtanh:
            return self._clamp(*args, **kwargs)
        return NotImplemented

    def _normalize(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        self._clean = None
        bf16 = input.device.type == "cpu" and input.dtype == torch.bfloat16
        # A single value per channel is an error that torch explains.
        if not (bf16 and training and input.numel() > input.shape[1]) or weight is None or bias is None:
            return NotImplemented
        result, mean, scale = torch.native_batch_norm(
            input, weight, bias, running_mean, running_var, True, momentum, eps
        )
        with torch.no_grad():
            alpha = scale * weight
            beta = bias - mean * alpha
            if torch.isfinite((mean + alpha + beta).sum()):  # not finite if one of them is not
                self._clean = result
        return result

    def _clamp(self, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
        clean, self._clean = self._clean, None
        changed = input is not clean or input._version  # in place, that is
        if changed or not inplace or (min_val, max_val) != (0.0, 6.0):
            return NotImplemented
        return _Clamp.apply(input)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.view(torch.int16).clamp_(0, SIX)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        found: Tensor = torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0)
        return found
