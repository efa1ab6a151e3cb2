"""The repeated layers of any architecture, bottom to top, found by structure alone.

A *stack* is a list of layers that a module runs one after the other: the layers of an encoder, those of a decoder, all
stages of a CNN. A *block* is one of its layers, whose module can be skipped; layers.py sorts all parameters, with stem
and head, by their depth, where a stage may be one layer.
"""

from __future__ import annotations

from torch import nn


def block_stacks(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Return the blocks of every stack with their names, in the order in which the model lists them.

    Lists (`nn.ModuleList`, `nn.Sequential`) whose members are all of one class with parts of its own hold blocks, or
    stages that hold such a list themselves, as in Swin, ConvNeXt, ResNet or timm's CNNs. What the blocks consist of is
    not looked into. Lists that one module holds side by side (timm's layer1, layer2, ...) are one stack. A model with
    no such list has no stacks.
    """
    return [stack for stack in _stacks(model, "") if stack]


def _stacks(module: nn.Module, prefix: str) -> list[list[tuple[str, nn.Module]]]:
    own: list[tuple[str, nn.Module]] = []
    below: list[list[tuple[str, nn.Module]]] = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if _is_list_of_layers(child):
            own += _blocks(child, path)
        else:
            below += _stacks(child, f"{path}.")
    return [own, *below]


def _blocks(container: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The members of a list, or of the lists that its members hold."""
    found: list[tuple[str, nn.Module]] = []
    for name, layer in container.named_children():
        inside = f"{path}.{name}"
        if _is_list_of_layers(layer):  # timm: a list of lists
            found += [(f"{inside}.{key}", block) for key, block in layer.named_children()]
            continue
        lists = [(key, part) for key, part in layer.named_children() if _is_list_of_layers(part)]
        if lists and _is_stage(layer):
            found += [
                (f"{inside}.{key}.{number}", block) for key, part in lists for number, block in part.named_children()
            ]
        else:
            found.append((inside, layer))
    return found


def _is_list_of_layers(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or not len(module):
        return False
    kinds = {type(layer) for layer in module}
    return len(kinds) == 1 and all(_is_compound(layer) for layer in module)


def _is_compound(layer: nn.Module) -> bool:
    """Whether a layer has parts, and parameters."""
    return any(True for _ in layer.children()) and any(True for _ in layer.parameters())


def _is_stage(layer: nn.Module) -> bool:
    """Whether a layer only holds a list of others, and what leads from one stage to the next.

    A block of a ResNet holds a list, too: of convolutions, around which its shortcut leads.
    """
    names = {name for name, _ in layer.named_children()}
    return not names & {"shortcut", "attention", "attn", "self_attn"}
