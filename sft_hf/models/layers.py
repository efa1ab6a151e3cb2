"""The layers of a model, bottom to top: read off its structure, whatever the architecture.

timm says of each of its models which parameters belong together (`group_matcher`), and Transformers keeps the layers of
a model in a list of a few names (`encoder.layer`, `model.layers`, ...). Where such a list holds stages of several
blocks (Swin, ConvNeXt), a stage is a layer; timm goes down to the block. The modules that can be skipped are in
blocks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sft_hf.errors import RecipeError
from sft_hf.freezing import head_names

LISTS = frozenset({"layer", "layers", "block", "blocks", "h", "stage", "stages", "albert_layer_groups"})
"""What lists of layers are called in Transformers; wav2vec2's `conv_layers` are below the layers."""


@dataclass(frozen=True)
class Stack:
    """Layers on top of each other, as names of parameters.

    `below` are embeddings, a stem, convolutions over the waveform; `layers` go from bottom to top. What stands above
    the last layer without being the head (a final norm, a pooler) goes with that layer, as in timm.
    """

    below: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]


def layer_stacks(model: nn.Module) -> list[Stack]:
    """Return the stack of a model's layers, or its encoder's and its decoder's, in this order; heads are in none.

    Raises RecipeError for a model without such layers.
    """
    head = set(head_names(model))
    groups = _groups_of_timm(model) if hasattr(model, "timm_model") else _groups(model)
    if not groups:
        raise RecipeError(
            f"techniques: no layers can be told apart in {type(model).__name__}; discriminative_learning_rates and "
            "train.freeze take names of parameters"
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
    if len(named) > 2 and set(named[-1]) - head:  # a neck beside the head
        named[-2:] = [named[-2] + named[-1]]
    return [named] if len(named) > 1 else []


def _groups(model: nn.Module) -> list[list[list[str]]]:
    """Names of what is below the layers and of each layer, of one stack or two."""
    lists = _lists_of_layers(model)
    sides: list[str] = ["encoder", "decoder"] if _is_encoder_decoder(model) else [""]
    groups = []
    for side in sides:
        mine = {name: count for name, count in lists.items() if not side or side in name.split(".")}
        if mine:
            chosen = max(mine, key=lambda name: mine[name])  # the longest, and of equals the first
            scope = f"{chosen.partition(side)[0]}{side}." if side else ""
            groups.append(_around(model, chosen, scope))
    return groups


def _lists_of_layers(model: nn.Module) -> dict[str, int]:
    """Lists of layers that are in no other one: name -> layers."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found) or ".adapter." in name  # on top
        if inside or name.rpartition(".")[2] not in LISTS or not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        if count := sum(1 for child in module if any(True for _ in child.parameters())):
            found[name] = count
    return found


def _around(model: nn.Module, chosen: str, scope: str) -> list[list[str]]:
    """Sort the parameters under `scope` into what is below a list of layers, and its layers, the top with the rest."""
    names = [name for name, _ in model.named_parameters() if name.startswith(scope)]
    layers: dict[int, list[str]] = {}
    for name in names:
        if name.startswith(f"{chosen}."):
            layers.setdefault(int(name[len(chosen) + 1 :].partition(".")[0]), []).append(name)
    first = names.index(next(iter(layers.values()))[0])
    inside = {name for layer in layers.values() for name in layer}
    below: list[str] = []
    above: list[str] = []
    for place, name in enumerate(names):
        if name not in inside:
            (above if _is_above(model, name, place > first) else below).append(name)
    ordered = [layers[number] for number in sorted(layers)]
    ordered[-1] = ordered[-1] + above
    return [below, *ordered]


def _is_above(model: nn.Module, name: str, registered_later: bool) -> bool:
    """Modules stand in the order in which they are run, but for embeddings, and for wav2vec2's norm in its newer form,
    which comes after the layers."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
        return False
    stable = getattr(getattr(model, "config", None), "do_stable_layer_norm", False)
    return registered_later or (stable and ".encoder.layer_norm." in name)


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def names_at(depths: dict[str, int], chosen: Sequence[str]) -> list[list[str]]:
    """Return some of a model's parameters by their depth, the top first; depths without any are left out."""
    levels = sorted({depths[name] for name in chosen}, reverse=True)
    return [[name for name in chosen if depths[name] == level] for level in levels]
