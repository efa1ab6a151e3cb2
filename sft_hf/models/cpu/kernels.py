"""Faster versions of torch functions that slow down a bf16 training step on a CPU.

Under autocast, torch computes softmax and layer normalization in float32 and returns float32: every linear layer that
reads the result makes a bf16 copy, and so does the backward pass. Here they read and write bf16 and compute in float32
internally, as torch's bf16 kernels do. Dropout masks come from a faster generator: torch draws numbers one by one,
3.8 ns each, a seventh of a training step of a small BERT in bf16. Here each element uses 16 bits of NumPy's SFC64,
seeded by a draw from torch's generator: masks remain a function of torch's seed, and recomputed activations get the
same masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sft_hf.models.cpu.forward_context import surround_forward

REDUCED = torch.bfloat16
MAX_SCORES = 1024 * 1024
"""Maximum number of attention scores per head and row; more would use the memory that the fused kernel saves."""
STEPS = 1 << 16
"""The dropout probability is rounded to a multiple of 1 / STEPS, and the scale uses the rounded value."""


def with_cpu_kernels(model: nn.Module) -> None:
    """Make a model's forward pass use the functions of this module under autocast to bf16, in place."""
    surround_forward(model, lambda: _Intercept() if _in_bf16() else nullcontext())


class _Intercept(TorchFunctionMode):
    """Intercepts calls of torch functions, and replaces those in `KERNELS`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = KERNELS.get(func)
        if known is not None and _in_bf16():  # parts of a model may disable autocast
            return known(*args, **kwargs)
        return func(*args, **kwargs)


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == REDUCED


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Apply dropout with `drop` in training on a CPU, else with torch."""
    if not training or inplace or input.device.type != "cpu":
        return functional.dropout(input, p, training, inplace)
    return drop(input, p)


def drop(x: Tensor, probability: float) -> Tensor:
    """Return x with elements zeroed at random, the rest scaled to keep the expectation.

    Source: N. Srivastava et al., Dropout, 2014, section 4, with the scale in training (section 10).
    """
    dropped = round(probability * STEPS)
    if dropped == 0:
        return x
    if dropped == STEPS:
        return x * 0.0
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
    keep = words.view(np.int16)[: x.numel()] >= dropped - STEPS // 2  # uniform on -32768 to 32767
    return x * _scaled(keep, STEPS / (STEPS - dropped), x.dtype).view(x.shape)


def _scaled(keep: np.ndarray, scale: float, dtype: torch.dtype) -> Tensor:
    """Return `scale` where `keep`, else 0. For 16-bit types, NumPy writes the bits in a fifth of torch's time."""
    if dtype in (torch.bfloat16, torch.float16):
        bits = torch.tensor(scale, dtype=dtype).view(torch.int16).item()
        return torch.from_numpy(np.multiply(keep, np.int16(bits), dtype=np.int16)).view(dtype)
    return torch.from_numpy(np.multiply(keep, np.float32(scale), dtype=np.float32)).to(dtype)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax of bf16 in bf16: torch's float32 result, rounded as the product that reads it would round it."""
    if input.dtype != REDUCED or input.device.type != "cpu" or dim is None or dtype not in (None, torch.float32):
        return functional.softmax(input, dim, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        return functional.softmax(input, dim)


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer normalization with a bf16 result; weight and bias stay in float32."""
    if input.device.type != "cpu" or input.dtype not in (REDUCED, torch.float32):
        return functional.layer_norm(input, normalized_shape, weight, bias, eps)
    with torch.autocast("cpu", enabled=False):
        return functional.layer_norm(input, normalized_shape, weight, bias, eps).to(REDUCED)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(q k^T scale + mask) v, [..., queries, size], for heads [..., positions, size], in training.

    Source: A. Vaswani et al., Attention Is All You Need, 2017, equation 1.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if query.device.type != "cpu" or enable_gqa or not torch.is_grad_enabled() or queries * keys > MAX_SCORES:
        options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    with torch.autocast("cpu", enabled=False):
        query, key, value = (tensor.to(REDUCED) for tensor in (query, key, value))
        scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(queries, keys, dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(REDUCED).min)
        elif attn_mask is not None:
            scores = scores + attn_mask.to(REDUCED)
        return drop(functional.softmax(scores, -1), dropout_p) @ value


KERNELS: dict[Any, Callable[..., Tensor]] = {
    functional.dropout: dropout,
    functional.softmax: softmax,
    functional.layer_norm: layer_norm,
    functional.scaled_dot_product_attention: attention,
}
