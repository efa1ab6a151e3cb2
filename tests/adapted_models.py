"""Settings of adapters, and models with them opened by Transformers and PEFT alone."""

from __future__ import annotations

import warnings

import peft
import torch
import transformers
from transformers import AutoConfig

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
KINDS = ["text", "vit", "cnn", "whisper", "wav2vec2"]
CLASSES = {
    "text": "BertForSequenceClassification",
    "vit": "ViTForImageClassification",
    "cnn": "TimmWrapperForImageClassification",
    "whisper": "WhisperForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
}
HEADS = {
    "text": "classifier.",
    "vit": "classifier.",
    "cnn": "timm_model.classifier.",
    "whisper": "-",
    "wav2vec2": "lm_head.",
}


def some_inputs(kind, model):
    """Numbers that a model of this kind takes."""
    generator = torch.Generator().manual_seed(3)
    if kind == "text":
        return {"input_ids": torch.randint(5, 30, (3, 7), generator=generator)}
    if kind in ("vit", "cnn"):
        size = {"vit": 16, "cnn": 32}[kind]
        return {"pixel_values": torch.randn(3, 3, size, size, generator=generator)}
    if kind == "wav2vec2":
        return {"input_values": torch.randn(3, 4000, generator=generator)}
    features = torch.randn(3, 40, 400, generator=generator)
    return {"input_features": features, "decoder_input_ids": torch.randint(5, 30, (3, 5), generator=generator)}


def answers(kind, model):
    with torch.no_grad():
        return model.eval()(**some_inputs(kind, model)).logits


def plain_base(kind, recipe, folder):
    """The checkpoint as anyone opens it, with a head of the right size."""
    config = AutoConfig.from_pretrained(folder / "model")
    size = {"vocab_size": config.vocab_size} if kind == "wav2vec2" else {"num_labels": config.num_labels}
    options = {} if kind == "whisper" else {**size, "ignore_mismatched_sizes": True}
    return getattr(transformers, CLASSES[kind]).from_pretrained(recipe.model.name, **options)


def opened_plainly(base, folder):
    """The adapter on the checkpoint, by PEFT alone; what PEFT and Transformers warn each other of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder / "adapter")
