"""Dropout."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.base import Technique
from sft_hf.techniques.regularization.settings import DropoutSettings


class Place(NamedTuple):
    """A dropout probability: an attribute of a module."""

    module: nn.Module
    attribute: str
    of_attention: bool
    """Dropout of attention weights, not of hidden states."""


def dropout_places(model: nn.Module) -> list[Place]:
    """Return every dropout probability of a model.

    These are the `p` of dropout modules, and the attributes that functional dropout reads: dropout, attention_dropout,
    activation_dropout, ... in Transformers, drop_rate in timm. LayerDrop and stochastic depth have other names and are
    not included.
    """
    places = []
    for module in model.modules():
        kind = type(module).__name__
        for name, child in module.named_children():
            if isinstance(child, _DropoutNd):
                places.append(Place(child, "p", _is_of_attention(kind, name)))
        for name, value in vars(module).items():
            if ("dropout" in name or name == "drop_rate") and type(value) in (int, float) and 0 <= value <= 1:
                places.append(Place(module, name, _is_of_attention(kind, name)))
    return list({(id(place.module), place.attribute): place for place in places}.values())


def _is_of_attention(kind: str, name: str) -> bool:
    """Return whether `name` in a module of class `kind` is dropout of attention weights (not in BertSelfOutput)."""
    if "attn" in name or "attention" in name:
        return True
    return "Attention" in kind and "Output" not in kind and name in ("dropout", "pos_dropout", "dropout_p")


class Dropout(Technique[DropoutSettings]):
    """Set all dropout probabilities of the model for training.

    Higher values reduce overfitting; 0 speeds up learning of small models or short training. The saved config keeps the
    pretrained model's probabilities. Frozen parts (train.freeze) have no dropout. Layers that an architecture omits at
    probability 0, as some of timm's do, are not added; use model.config_overrides for that.
    """

    paper = "N. Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014, section 4"
    order = 10
    allows_frozen_features = True

    def prepare_model(self, model: nn.Module) -> None:
        """Set the probabilities. Raises RecipeError for a model without any."""
        places = dropout_places(model)
        if not places:
            raise RecipeError(f"techniques: dropout: {type(model).__name__} has no dropout to set")
        hidden, attention = self.settings.probability, self.settings.attention_probability
        attention = hidden if attention is None else attention
        for place in places:
            probability = attention if place.of_attention else hidden
            if probability is not None:
                setattr(place.module, place.attribute, probability)
