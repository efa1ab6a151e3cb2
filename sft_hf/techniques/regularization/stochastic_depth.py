"""Stochastic depth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sft_hf.core.errors import RecipeError
from sft_hf.models.blocks import block_stacks
from sft_hf.techniques.base import Technique
from sft_hf.techniques.regularization.settings import StochasticDepthSettings


def drop_probability(block: int, blocks: int, last: float) -> float:
    """Return p of block l = 1 ... L: (l / L) p_L, so that lower blocks are dropped less often.

    Source: G. Huang et al., Deep Networks with Stochastic Depth, 2016, equation 4.
    """
    return block / blocks * last


def thinned(before: Tensor, after: Tensor, kept: Tensor, probability: float) -> Tensor:
    """Return x + b / (1 - p) (f(x) - x): the block applied to the rows that keep it, scaled so that the mean is f(x).

    Args:
        before, after: float [rows, ...], the input x of a block with a skip connection, and its output f(x).
        kept: bool [rows], b.
        probability: p, with which b is 0.

    Source: G. Huang et al., Deep Networks with Stochastic Depth, 2016, equations 2 and 5; but outputs are scaled up in
    training rather than down in evaluation, as in timm's `drop_path` and EfficientNet's code.
    """
    scale = kept.to(after.dtype).view(-1, *[1] * (after.ndim - 1)) / (1 - probability)
    return before + scale * (after - before)


class StochasticDepth(Technique[StochasticDepthSettings]):
    """Skip layers at random for each row during training, upper layers more often.

    Regularizes deep models in long training. Each row is drawn separately, and evaluation uses all layers. Layers are
    the repeated blocks whose output has the shape of their input; blocks that change the resolution are never skipped.
    Encoder and decoder have separate depths. Frozen layers are not skipped. It saves no time, as other rows still use
    the layer.
    """

    paper = "G. Huang et al., Deep Networks with Stochastic Depth, 2016, equations 2 to 5"
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Register hooks on all blocks. Raises RecipeError for a model without repeated layers."""
        stacks = block_stacks(model)
        if not stacks:
            raise RecipeError(f"techniques: stochastic_depth: {type(model).__name__} has no repeated layers to skip")
        for stack in stacks:
            for number, (_, block) in enumerate(stack, start=1):
                probability = drop_probability(number, len(stack), self.settings.probability)
                if probability:
                    block.register_forward_hook(partial(_thin, probability), with_kwargs=True)


def _thin(probability: float, block: nn.Module, arguments: Any, options: Mapping[str, Any], output: Any) -> Any:
    """Replace a block's (first) output by `thinned`, with torch's global random numbers."""
    if not block.training:
        return output
    before = arguments[0] if arguments else options.get("hidden_states")
    after = output[0] if isinstance(output, tuple) else output
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.shape != after.shape:
        return output
    kept = torch.rand(len(after), device=after.device) >= probability
    changed = thinned(before, after, kept, probability)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
