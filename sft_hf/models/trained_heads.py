"""Pretrained classifiers: which rows of the head belong to which labels of the data.

The head is kept if it has the same labels, with its rows reordered to match the data: labels are matched by name,
ignoring letter case, blanks and Unicode form. Generic names (LABEL_0, 0) match the labels of a data set whose labels
are 0, 1, 2, ..., and the names in `data.label_names`, in their order. With other labels, the last layer is
reinitialized, since its rows have other meanings.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft_hf.core.errors import CheckpointError, first_few
from sft_hf.models.formats.state_dicts import build_config, is_state_dict
from sft_hf.models.freezing import head_names, note_new_weights
from sft_hf.models.loading import open_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

_NAMELESS = re.compile(r"(?:label[_ ]?)?([0-9]{1,9})", re.IGNORECASE)


@dataclass(frozen=True)
class HeadRows:
    """Labels of a head's rows, labels of the data, and whether the recipe gives the latter (`data.label_names`)."""

    own: tuple[str, ...]
    wanted: tuple[str, ...]
    chosen: bool


def open_config(source: Source, architecture: str | None) -> Any:
    """Return the config of a model, or of a plain state dict (`model.architecture`). Raises CheckpointError."""
    from transformers import AutoConfig

    return (
        build_config(source, architecture) if is_state_dict(source) else open_checkpoint(AutoConfig, source, "config")
    )


def label_order(config: Any) -> tuple[str, ...]:
    """Return the labels of a config in the order of its outputs; empty without a config."""
    id2label = getattr(config, "id2label", None) or {}
    return tuple(str(id2label[index]) for index in sorted(id2label, key=int))


def in_own_order(names: tuple[str, ...], own: Sequence[str]) -> tuple[str, ...]:
    """Return the labels in the order of a head with exactly these labels, else unchanged. Spelling is kept."""
    rows = matching_rows(own, names)
    return names if rows is None else tuple(names[index] for index in sorted(range(len(rows)), key=rows.__getitem__))


def matching_rows(own: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the row of the head for each wanted label; None if the labels are not the same."""
    for key in (_composed, _folded):
        rows = {key(name): row for row, name in enumerate(own)}
        keys = [key(name) for name in wanted]
        if len(rows) == len(own) == len(wanted) == len(set(keys)) and rows.keys() == set(keys):
            return [rows[name] for name in keys]
    numbers = [_number(name) for name in own]
    if numbers == list(range(len(wanted))) and {name.strip() for name in wanted} == {str(row) for row in numbers}:
        return [int(name) for name in wanted]
    return None


def settle_head(model: PreTrainedModel, rows: HeadRows | None) -> PreTrainedModel:
    """Reorder the rows of a pretrained head to match the data's labels, or reinitialize its last layer, and log it.

    A head that is already new, or of another size, is not changed. Uses torch's random numbers only for a new layer.
    Raises CheckpointError if the head is for other labels and its last layer cannot be identified.
    """
    if rows is None or len(rows.own) != len(rows.wanted):
        return model
    new = set(getattr(model, "new_weights", ()))
    head = set(head_names(model))
    if not head or head <= new:
        return model
    layers = _last_layers(model, head, len(rows.wanted))
    names = [f"{place}.{name}" for place, layer in layers.items() for name, _ in layer.named_parameters()]
    if layers and set(names) <= new:
        return model
    order = matching_rows(rows.own, rows.wanted)
    if order is None and rows.chosen and _says_nothing(rows.own):
        log.info("the head is kept: its outputs, which have no names, are data.label_names in their order")
        return model
    if order == list(range(len(rows.wanted))):
        log.info("the head is kept: it was trained for the same labels")
        return model
    if not layers:
        raise CheckpointError(
            f"{type(model).__name__}: its head was trained for the labels {_listed(rows.own)}, and its last layer "
            f"cannot be identified to replace them by these: {_listed(rows.wanted)}; use a model without a head, or "
            "list the labels in the head's order in data.label_names"
        )
    if order is not None:
        _permute(layers, order)
        log.info("pretrained head kept; its outputs are reordered to match the labels: %s", _listed(rows.wanted))
    else:
        _start_anew(model, layers, names)
        remedy = "; data.label_names, in the order of its outputs, keeps it" if _says_nothing(rows.own) else ""
        log.info("a new head: the pretrained one is for %s, not %s%s", _listed(rows.own), _listed(rows.wanted), remedy)
    return model


def _last_layers(model: nn.Module, head: set[str], size: int) -> dict[str, nn.Module]:
    """Return the layers of the head with an output for each label; for two heads (distilled models), both."""
    found = {
        name: layer
        for name, layer in model.named_modules()
        if f"{name}.weight" in head
        and isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
        and layer.weight.shape[0] == size
    }
    # A hidden layer of the head may have as many outputs by chance; it is in a module inside the head.
    last = next(reversed(found), None)
    hidden = [name for name, layer in found.items() if layer.weight.shape[1] == size and "." in name and name != last]
    return {name: layer for name, layer in found.items() if name not in hidden}


def _permute(layers: Mapping[str, nn.Module], order: Sequence[int]) -> None:
    with torch.no_grad():
        for layer in layers.values():
            for parameter in layer.parameters():
                parameter.copy_(parameter[list(order)].clone())


def _start_anew(model: PreTrainedModel, layers: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    spread = float(getattr(model.config, "initializer_range", None) or 0.02)
    with torch.no_grad():
        for layer in layers.values():
            for name, parameter in layer.named_parameters():
                if name == "bias":
                    parameter.zero_()
                else:
                    parameter.normal_(std=spread)
    note_new_weights(model, sorted({*getattr(model, "new_weights", ()), *names}))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return " ".join(_composed(name).casefold().replace("_", " ").replace("-", " ").split())


def _number(name: str) -> int | None:
    found = _NAMELESS.fullmatch(name.strip())
    return int(found[1]) if found else None


def _says_nothing(names: Sequence[str]) -> bool:
    """Whether a head's labels are the default names LABEL_0, LABEL_1, ..."""
    return [_number(name) for name in names] == list(range(len(names)))


def _listed(names: Sequence[str]) -> str:
    return first_few([f"{name:.40}" for name in names], 5)
