"""The layers of a model of any architecture, from bottom to top, as modules found by name and structure.

A *stack* is a list of layers that run in sequence: those of an encoder, those of a decoder, all stages of a CNN. A
layer is a *block*, also in models whose blocks are grouped into stages (Swin, ConvNeXt, ResNet): blocks can be skipped,
and are the layers of the layer-wise learning rates of BEiT (`get_num_layer_for_vit`), SimMIM's Swin (`get_swin_layer`),
ConvNeXt (`get_num_layer_for_convnext_single`) and timm. layers.py groups parameters by them.
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
"""Names of lists of layers or stages in Transformers and timm (also with digits: `layer1`, `layer2`, ...).

Left out: wav2vec2's `conv_layers`, `patch_embeddings`, `branches`; and XLM's `attentions` and `ffns`, which are halves
of layers without the residual connections.
"""

Block = tuple[str, nn.Module]


def block_stacks(model: nn.Module) -> list[list[Block]]:
    """Return the blocks of every stack with their names, in the order in which the model lists them.

    A list (`nn.ModuleList`, `nn.Sequential`) has one of the names in LISTS and members with submodules. Its members are
    blocks, or stages: lists themselves, or modules that contain lists. Blocks are not searched, so the convolutions of
    a ResNet are not blocks. Layers that share their parameters (ALBERT) count as one. Lists in the same module form one
    stack. A model without such lists has no stacks.
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
    """Yield (name, list) for the outermost lists of layers."""
    for name, child in _members(path, module):
        if name.rpartition(".")[2].rstrip(digits) in LISTS and _is_list(child):
            yield name, child
        else:
            yield from _lists(child, name)


def _members(path: str, module: nn.Module) -> list[Block]:
    return [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]


def _is_list(module: nn.Module) -> bool:
    """Whether a module is a list of modules that all have submodules and parameters."""
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) > 0
        and all(any(True for _ in part.children()) and any(True for _ in part.parameters()) for part in module)
    )


def _is_of_parts(path: str, members: nn.Module) -> bool:
    """Whether a list inside a layer holds its parts, as `layer` of a T5 block does: attention and feed-forward."""
    return path.endswith(".layer") and len({type(part) for part in members.children()}) > 1
