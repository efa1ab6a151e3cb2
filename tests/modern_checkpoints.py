"""Tiny random checkpoints of the architectures that recent recipes start from: files in a folder, as on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_data import SPOKEN


def words_tokenizer(words: list[str], folder: Path, *, decoder: bool) -> Any:
    """A tokenizer of whole words; an encoder's puts marks around a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_end|>"] if decoder else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *dict.fromkeys(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special[0 if decoder else 1]))
    tokenizer.pre_tokenizer = Whitespace()
    if decoder:
        names = {"eos_token": special[1], "pad_token": special[0]}
    else:
        ends = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
        names = {f"{mark[1:-1].lower()}_token": mark for mark in special}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)
    return fast


def write_modernbert(folder: Path, words: list[str]) -> Path:
    """A ModernBERT of two layers, one of them local, for masked words."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    tokenizer = words_tokenizer(words, folder, decoder=False)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        layer_types=["full_attention", "sliding_attention"],
        local_attention=8,
        bos_token_id=ids["cls_token_id"],
        eos_token_id=ids["sep_token_id"],
        **ids,
    )
    torch.manual_seed(0)
    ModernBertForMaskedLM(config).save_pretrained(folder)
    return folder


def write_qwen3(folder: Path, words: list[str]) -> Path:
    """A Qwen3 of two layers, with fewer heads of keys than of queries, and tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = words_tokenizer(words, folder, decoder=True)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def write_siglip2(folder: Path) -> Path:
    """A SigLIP 2 of fixed size, which is of SigLIP's architecture: pictures of 16 x 16, and texts."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 32}
    config = SiglipConfig(
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config={**size, "image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def write_parakeet(folder: Path) -> Path:
    """A Parakeet of one layer and 32 dimensions that writes word pieces, a frame every 80 ms."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import Unigram
    from transformers import (
        ParakeetCTCConfig,
        ParakeetFeatureExtractor,
        ParakeetForCTC,
        ParakeetProcessor,
        ParakeetTokenizer,
    )

    start = "\u2581"
    letters = sorted({letter for word in SPOKEN for letter in word})
    pieces = [f"{start}{word}" for word in SPOKEN] + [start, *letters]
    scores = [("<unk>", 0.0), *((piece, -1.0 - (len(piece) == 1)) for piece in pieces)]
    tokenizer = Tokenizer(Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    ParakeetProcessor(ParakeetFeatureExtractor(feature_size=16), fast).save_pretrained(folder)
    config = ParakeetCTCConfig(
        vocab_size=len(fast),
        pad_token_id=fast.pad_token_id,
        encoder_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "conv_kernel_size": 5,
            "subsampling_conv_channels": 8,
            "num_mel_bins": 16,
        },
    )
    torch.manual_seed(0)
    ParakeetForCTC(config).save_pretrained(folder)
    return folder
