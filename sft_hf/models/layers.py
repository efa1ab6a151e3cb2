"""The parameters of a model by depth: what is below its layers, in each of them, and in the head.

What a layer is, blocks.py says: a block, also where several make a stage (Swin, ConvNeXt, ResNet). Of its own models
timm says itself which parameters belong together (`group_matcher`): blocks, too, but for a few architectures.
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
    """Layers on top of each other, as names of parameters.

    `below` are embeddings, a stem, convolutions over the waveform; `layers` go from bottom to top. What stands above
    the last layer without being the head (a final norm, a pooler) goes with that layer, and what leads from one stage
    to the next with the layer above it, as in timm and ConvNeXt (in SimMIM's Swin: with the one below).
    """

    below: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]


def layer_stacks(model: nn.Module) -> list[Stack]:
    """Return the stack of a model's layers, or its encoder's and its decoder's, in this order; heads are in none.

    Raises RecipeError for a model without such layers.
    """
    head = set(head_names(model))
    grouped = hasattr(getattr(model, "timm_model", None), "group_matcher")  # a few of timm's have none
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

    Of an encoder and a decoder, each is counted from its own top, which has depth L: every layer of the decoder reads
    the encoder's top, so that this is no further from the answer for a decoder of many layers. Where they differ in
    length, what is below the shorter one has a depth of more than 0. Raises RecipeError as `layer_stacks` does.
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
    """Names of the stem and of each layer, as timm groups them for layer-wise learning rates."""
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
    """Names of what is below the layers and of each layer, of one stack or two."""
    stacks = [[name for name, _ in stack] for stack in block_stacks(model)]
    if not _is_encoder_decoder(model):
        return [_around(model, max(stacks, key=len), "")] if stacks else []  # the longest, and of equals the first
    groups = []
    for side in ("encoder", "decoder"):
        mine = [stack for stack in stacks if side in stack[0].split(".")]
        if mine:
            longest = max(mine, key=len)
            groups.append(_around(model, longest, f"{longest[0].partition(side)[0]}{side}."))
    return groups


def _around(model: nn.Module, blocks: list[str], scope: str) -> list[list[str]]:
    """Sort the parameters under `scope` into what is below the blocks, and the blocks with what is around them.

    Modules are in the order of execution, but for embeddings, and for wav2vec2's norm in its newer form,
    which comes after the layers.
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
    """Return some of a model's parameters by their depth, the top first; depths without any are left out."""
    levels = sorted({depths[name] for name in chosen}, reverse=True)
    return [[name for name in chosen if depths[name] == level] for level in levels]
