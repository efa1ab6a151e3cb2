"""The layers of a model, bottom to top, as modules: found by name and structure, whatever the architecture.

A *stack* is a list of layers that run one after the other: those of an encoder, those of a decoder, all stages of a
CNN. A layer is a *block*, also where blocks are sorted into stages (Swin, ConvNeXt, ResNet): that is what can be
skipped, and what a layer is to the layer-wise learning rates of BEiT (`get_num_layer_for_vit`), SimMIM's Swin
(`get_swin_layer`), ConvNeXt (`get_num_layer_for_convnext_single`) and timm. layers.py sorts parameters by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import digits

from torch import nn

LISTS = frozenset(
    {"layer", "layers", "block", "blocks", "h", "stage", "stages", "levels"}
    | {"albert_layer_groups", "albert_layers", "self_attends"}  # ALBERT, Perceiver
    | {"network", "transformers", "transformer_encoder", "serial_blocks"}  # VOLO, SwiftFormer; PiT, NesT, CoaT
)
"""What lists of layers, or of stages, are called in Transformers and timm (`layer1`, `layer2`, ... too).

Not among them: wav2vec2's `conv_layers`, `patch_embeddings`, `branches`; and XLM's `attentions` and `ffns`, which are
halves of layers without what leads around them.
"""

Block = tuple[str, nn.Module]


def block_stacks(model: nn.Module) -> list[list[Block]]:
    """Return the blocks of every stack with their names, in the order in which the model lists them.

    A list (`nn.ModuleList`, `nn.Sequential`) has one of the names of LISTS and members that have parts. Its members are
    the blocks, or they are stages: lists themselves, or modules that hold lists. What blocks consist of is not looked
    into, so that a ResNet's convolutions are not blocks. Of layers that share their parameters (ALBERT) there is one.
    Lists that one module holds side by side are one stack. A model without such lists has no stacks.
    """
    stacks: dict[str, list[Block]] = {}
    for path, members in _lists(model):
        stack = stacks.setdefault(path.rpartition(".")[0], [])
        for name, layer in _members(path, members):
            inside = [(name, layer)] if _is_list(layer) else _lists(layer, name)
            blocks = [block for inner in inside if not _is_of_parts(*inner) for block in _members(*inner)]
            stack += blocks or [(name, layer)]
    return list(stacks.values())


def _lists(module: nn.Module, path: str = "") -> Iterator[Block]:
    """Lists of layers that are in no other one, by their names."""
    for name, child in _members(path, module):
        if name.rpartition(".")[2].rstrip(digits) in LISTS and _is_list(child):
            yield name, child
        else:
            yield from _lists(child, name)


def _members(path: str, module: nn.Module) -> list[Block]:
    return [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]


def _is_list(module: nn.Module) -> bool:
    """Whether a module is a list of modules that all have parts, and parameters."""
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) > 0
        and all(any(True for _ in part.children()) and any(True for _ in part.parameters()) for part in module)
    )


def _is_of_parts(path: str, members: nn.Module) -> bool:
    """Whether a list inside a layer is what T5's block calls `layer`: attention and feed-forward."""
    return path.endswith(".layer") and len({type(part) for part in members.children()}) > 1
