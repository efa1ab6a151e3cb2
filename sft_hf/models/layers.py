"""The parameters of a model by depth: below its layers, in each layer, and in the head.

Layers are blocks as defined in blocks.py, also in models with stages (Swin, ConvNeXt, ResNet). timm's models define
their own groups of parameters (`group_matcher`), which are also blocks, except for a few architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.models.blocks import block_stacks
from sft_hf.models.freezing import head_names


@dataclass(frozen=True)
class Stack:
    """A stack of layers, as parameter names.

    `below` are embeddings, a stem, convolutions over the waveform; `layers` go from bottom to top. Parameters between
    the last layer and the head (a final norm, a pooler) belong to that layer, and those between two stages to the layer
    above, as in timm and ConvNeXt (in SimMIM's Swin: to the layer below).
    """

    below: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]


def layer_stacks(model: nn.Module) -> list[Stack]:
    """Return the stack of a model's layers, or those of its encoder and decoder, in this order, without heads.

    Raises RecipeError for a model without such layers.
    """
    head = set(head_names(model))
    grouped = hasattr(getattr(model, "timm_model", None), "group_matcher")  # a few timm models have none
    groups = _groups_of_timm(model) if grouped else _groups(model)
    if not groups or all(name in head for name, _ in model.named_parameters()):
        raise RecipeError(
            f"techniques: cannot identify the layers of {type(model).__name__}; use parameter names with "
            "discriminative_learning_rates and train.freeze"
        )
    stacks = []
    for below, *layers in groups:
        pretrained = (tuple(name for name in names if name not in head) for names in layers)
        stacks.append(Stack(tuple(name for name in below if name not in head), tuple(filter(None, pretrained))))
    return stacks


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter: 0 below the layers, 1 to L in them, L + 1 in the head.

    Encoder and decoder are each counted from their top, which has depth L: every layer of the decoder reads the top of
    the encoder, so the number of decoder layers does not move it further from the output. If they differ in length,
    parameters below the shorter one have a depth above 0. Raises RecipeError like `layer_stacks`.
    """
    stacks = layer_stacks(model)
    top = max(len(stack.layers) for stack in stacks)
    depths = dict.fromkeys(head_names(model), top + 1)
    for stack in stacks:
        lowest = top - len(stack.layers)
        for place, names in enumerate((stack.below, *stack.layers)):
            depths |= dict.fromkeys(names, lowest + place)
    return {name: depths.get(name, 0) for name, _ in model.named_parameters()}


def _groups_of_timm(model: Any) -> list[list[list[str]]]:
    """Return the names of the stem and of each layer, as timm groups them for layer-wise learning rates."""
    from timm.models import group_parameters

    inner = model.timm_model
    prefix = next(name for name, module in model.named_modules() if module is inner)
    groups = group_parameters(inner, inner.group_matcher(coarse=False))
    named = [[f"{prefix}.{name}" for name in groups[place]] for place in sorted(groups)]
    head = set(head_names(model))
    if len(named) > 2 and set(named[-1]) - head:  # a neck next to the head
        named[-2:] = [named[-2] + named[-1]]
    return [named] if len(named) > 1 else []


def _groups(model: nn.Module) -> list[list[list[str]]]:
    """Return the parameter names below the layers and in each layer, for one stack or two."""
    stacks = [[name for name, _ in stack] for stack in block_stacks(model)]
    if not _is_encoder_decoder(model):
        return [_around(model, max(stacks, key=len), "")] if stacks else []  # the longest; the first of equal length
    groups = []
    for side in ("encoder", "decoder"):
        mine = [stack for stack in stacks if side in stack[0].split(".")]
        if mine:
            longest = max(mine, key=len)
            groups.append(_around(model, longest, f"{longest[0].partition(side)[0]}{side}."))
    return groups


def _around(model: nn.Module, blocks: list[str], scope: str) -> list[list[str]]:
    """Split the parameters under `scope` into those below the blocks, and those in and around each block.

    Modules are listed in order of execution, except for embeddings, and for wav2vec2's norm with
    `do_stable_layer_norm`, which is applied after the layers.
    """
    number = {
        f"{block}.{name}": place
        for place, block in enumerate(blocks, start=1)
        for name, _ in model.get_submodule(block).named_parameters()
    }
    stable = getattr(getattr(model, "config", None), "do_stable_layer_norm", False)
    groups: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    reached = 0
    for name in (name for name, _ in model.named_parameters() if name.startswith(scope)):
        if name in number:
            place = reached = number[name]
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            place = 0
        elif stable and ".encoder.layer_norm." in name:
            place = len(blocks)
        else:
            place = min(reached + 1, len(blocks)) if reached else 0
        groups[place].append(name)
    return groups


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def names_at(depths: dict[str, int], chosen: Sequence[str]) -> list[list[str]]:
    """Group some of a model's parameters by depth, the top first; depths without any are left out."""
    levels = sorted({depths[name] for name in chosen}, reverse=True)
    return [[name for name in chosen if depths[name] == level] for level in levels]
