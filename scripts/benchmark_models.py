"""Models of common sizes with random weights, for scripts/benchmark.py: they are as fast as trained ones."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.sources.sources import resolve_section
from sft_hf.models.formats.ctranslate2 import transformers_source

WHISPER_SMALL = {"d_model": 768, "encoder_layers": 12, "decoder_layers": 12}
WHISPER_HEADS = {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
WHISPER_WIDTHS = {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}


def write_random(name: str, folder: Path, recipe: Recipe) -> None:
    """Write a model folder: bert-base, vit-base (16 x 16 patches of 224 pixels) or whisper-small.

    Tokenizers are those of the recipe's pretrained model, which has the same vocabulary.
    """
    torch.manual_seed(0)
    source = resolve_section(recipe.model, "model")
    if name == "bert-base":
        AutoTokenizer.from_pretrained(source.location()).save_pretrained(folder)
        BertModel(BertConfig()).save_pretrained(folder)
    elif name == "vit-base":
        ViTImageProcessor().save_pretrained(folder)
        ViTModel(ViTConfig()).save_pretrained(folder)
    elif name == "whisper-small":
        location = transformers_source(source).location()
        tokenizer = AutoTokenizer.from_pretrained(location)
        base = WhisperForConditionalGeneration.from_pretrained(location)
        config = WhisperConfig(**{**base.config.to_dict(), **WHISPER_SMALL, **WHISPER_HEADS, **WHISPER_WIDTHS})
        model = WhisperForConditionalGeneration(config)
        model.generation_config = base.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        WhisperFeatureExtractor.from_pretrained(location).save_pretrained(folder)
    else:
        raise SystemExit(f"--random-weights {name}: bert-base, vit-base or whisper-small")
