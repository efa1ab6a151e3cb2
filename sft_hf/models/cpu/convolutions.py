"""Convolutional networks in bf16 on CPUs: the backward pass of depthwise convolutions, and ReLU6 after batch norm.

oneDNN uses slow reference code for depthwise convolutions with stride 2 (input gradient) or a kernel larger than 3 x 3
(weight gradient): 93 and 83 ms for a layer of EfficientNet-Lite0 whose forward pass takes 3 ms. Both gradients can be
computed with its fast kernels:

    dL/dx  is a convolution of dL/dy, with stride - 1 zeros between its values, and the flipped kernel.
    dL/dw  of a 5 x 5 kernel is that of four 3 x 3 kernels, on the input shifted by 0 or 2 rows and columns.

Source: V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning, 2016, section 4. Sums are
accumulated in float32 and rounded to bf16, as in the plain kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sft_hf.models.cpu.forward_context import surround_forward

SIX = 0x40C0
"""The bits of 6 in bf16."""


def has_depthwise(model: nn.Module) -> bool:
    """Whether a model has convolutions with one kernel per channel."""
    return any(isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels for module in model.modules())


def with_fast_backward(model: nn.Module) -> None:
    """Make a model's forward pass record the backward pass of this module where it applies, in place."""
    surround_forward(model, _Intercept)


class _Intercept(TorchFunctionMode):
    """Intercepts calls of torch functions in a forward pass, and replaces those that this module implements."""

    def __init__(self) -> None:
        super().__init__()
        self.relu6 = _Relu6()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            if func is torch.conv2d:
                call = _Call.of(*args, **kwargs)
                if call is not None:
                    return call.apply()
            result = self.relu6.call(func, args, kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


class _Call:
    """A depthwise convolution in bf16 on a CPU."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> None:
        self.x, self.weight, self.bias, self.stride, self.padding = x, weight, bias, stride, padding

    @classmethod
    def of(
        cls,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> _Call | None:
        """Return the call, or None if torch should handle it."""
        if input.device.type != "cpu" or torch.get_autocast_dtype("cpu") != torch.bfloat16 or isinstance(padding, str):
            return None
        stride, padding, dilation = (
            pair if isinstance(pair, tuple) else (pair, pair) for pair in (stride, padding, dilation)
        )
        depthwise = 1 < groups == input.shape[1] == weight.shape[0]
        square = weight.shape[2] == weight.shape[3] in (3, 5) and stride[0] == stride[1] and padding[0] == padding[1]
        if not (
            input.ndim == 4 and depthwise and square and tuple(dilation) == (1, 1) and padding[0] < weight.shape[2]
        ):
            return None
        if stride[0] == 1 and weight.shape[2] == 3:  # the plain kernels are fast
            return None
        return cls(input, weight, bias, int(stride[0]), int(padding[0]))

    def apply(self) -> Tensor:
        """Return the output of the convolution."""
        x, weight = self.x.to(torch.bfloat16), self.weight.to(torch.bfloat16)
        result: Tensor = _Depthwise.apply(x, weight, self.stride, self.padding)
        return result if self.bias is None else result + self.bias.to(torch.bfloat16)[None, :, None, None]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, stride=stride, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        to_input = input_gradient(grad, weight, x.shape, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        to_weight = weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return to_input, to_weight, None, None


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """Return dL/dx, [n, c, h, w] as `shape`, of a depthwise convolution.

    Args:
        grad: dL/dy, [n, c, h', w'].
        weight: [c, 1, k, k].
        stride, padding: of both dimensions; padding < k.
    """
    k = weight.shape[2]
    if stride > 1:
        # The size for which convolving with the kernel gives the size of the input.
        rows, columns = (size + 2 * padding - k + 1 for size in shape[2:])
        n, channels = grad.shape[:2]
        spread = grad.new_zeros((n, rows, columns, channels)).permute(0, 3, 1, 2)  # channels last from the start
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return torch.conv2d(grad, weight.flip(2, 3), padding=k - 1 - padding, groups=len(weight))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return dL/dw, [c, 1, k, k], of a depthwise convolution with a kernel of 3 x 3 or 5 x 5; see `input_gradient`."""
    k = weight.shape[2]
    if k == 3:
        return _plain_weight_gradient(grad, x, weight, stride, padding)
    x = functional.pad(x, (padding,) * 4)
    rows, columns = (stride * (size - 1) + 3 for size in grad.shape[2:])
    result = torch.empty_like(weight)
    corner = weight[:, :, :3, :3].contiguous()
    for top in (0, 2):
        for left in (0, 2):
            part = x[:, :, top : top + rows, left : left + columns].contiguous(memory_format=torch.channels_last)
            result[:, :, top : top + 3, left : left + 3] = _plain_weight_gradient(grad, part, corner, stride, 0)
    return result


def _plain_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    sizes: Any = ([stride, stride], [padding, padding], [1, 1], False, [0, 0], len(weight))
    found: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *sizes, [False, True, False])[1]
    return found


class _Relu6:
    """Replaces the calls of batch norm and ReLU6 in a forward pass: the same values, by integer comparison.

    torch converts bf16 to float32 to compare, and rounds back, which took as long as the preceding batch norm. Read as
    16-bit integers, bf16 values >= 0 keep their order, and values below 0 are negative: clamping the integers is four
    times as fast. It would turn NaN into a number, so it is used only if there is no NaN: batch norm's output
    x alpha + beta, with x the input, has none if alpha, beta and the mean of x are finite.
    """

    def __init__(self) -> None:
        self._clean: Tensor | None = None  # the last output of batch norm, if it has no NaN

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the function's output, or `NotImplemented` if torch should handle the call."""
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
        # torch raises the error for a single value per channel.
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
        changed = input is not clean or input._version  # changed in place
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
