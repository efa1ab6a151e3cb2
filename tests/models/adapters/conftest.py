"""Recipes with an adapter."""

from __future__ import annotations

import pytest
from adapted_models import LORA


@pytest.fixture(autouse=True)
def cache(own_cache):
    """Every test here has a cache folder of its own."""


@pytest.fixture
def make(make_recipe, make_image_recipe, make_speech_recipe, cnn_checkpoint, wav2vec2_checkpoint):
    """Return a function that makes a recipe of one of the kinds, with LoRA unless another section is given."""

    def of(kind, section=LORA, **changes):
        makers = {"text": make_recipe, "vit": make_image_recipe, "cnn": make_image_recipe}
        if kind in ("cnn", "wav2vec2"):
            changes = {"model__name": str({"cnn": cnn_checkpoint, "wav2vec2": wav2vec2_checkpoint}[kind]), **changes}
        return makers.get(kind, make_speech_recipe)(peft=section, **changes)

    return of
