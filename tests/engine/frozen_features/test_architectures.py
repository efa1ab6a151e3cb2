"""Finding, recording and replaying the frozen part of architectures that nothing in the code knows of."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    ResNetConfig,
    RobertaConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from sft_hf.engine.frozen_features.replay import Replay, record
from sft_hf.engine.frozen_features.trace import find_frozen_part
from sft_hf.models.freezing import evaluate_frozen_parts, freeze

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
WORDS = {**SIZES, "vocab_size": 50, "pad_token_id": 0}
MODERN = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50, "num_labels": 3}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 50, "num_labels": 3, "pad_token_id": 0}

TEXTS = {  # the first text has five tokens
    "roberta": (RobertaConfig(**WORDS, max_position_embeddings=64), ["backbone"], (32,)),
    "distilbert": (DistilBertConfig(**DISTIL), ["distilbert.embeddings", "distilbert.transformer.layer.0"], (5, 32)),
    "modernbert": (ModernBertConfig(**WORDS, **MODERN), ["model.embeddings", "model.layers.[01]"], (5, 32)),
    "gpt2": (GPT2Config(**GPT), ["backbone"], (5, 32)),
    "llama": (LlamaConfig(**WORDS), ["model.embed_tokens", "model.layers.[01]"], (5, 32)),  # with a cache of its own
}
IMAGES = {
    "vit": (ViTConfig(**SIZES, image_size=64, patch_size=16), ["backbone"], (32,)),
    "vit_lower": (ViTConfig(**SIZES, image_size=64, patch_size=16), ["vit.embeddings", "vit.layers.[01]"], (17, 32)),
    "resnet": (ResNetConfig(**RESNET), ["resnet.embedder", "resnet.encoder.stages.0"], (8, 16, 16)),
    "timm_resnet": (TimmWrapperConfig(architecture="test_resnet", num_labels=3), ["backbone"], (96,)),
    "timm_byobnet": (TimmWrapperConfig(architecture="test_byobnet", num_labels=3), ["backbone"], (256,)),
}


def texts(lengths):
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(length))
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def images(seeds):
    pixels = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return {"pixel_values": torch.stack(pixels)}


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
def test_a_replay_gives_the_logits_of_the_whole_model(name):
    torch.manual_seed(0)
    if name in TEXTS:
        (config, patterns, shape), make, auto = TEXTS[name], texts, AutoModelForSequenceClassification
    else:
        (config, patterns, shape), make, auto = IMAGES[name], images, AutoModelForImageClassification
    model = auto.from_config(config).train()
    freeze(model, patterns)
    evaluate_frozen_parts(model)

    def run(batch):
        torch.manual_seed(1)  # dropout above the cut
        return model(**batch).logits

    rows = [5, 9, 12]
    part = find_frozen_part(model, lambda: run(make(rows)))
    recorded = [[tensor[0] for tensor in record(model, part, lambda row=row: run(make([row])))] for row in rows]
    assert tuple(recorded[0][0].shape) == shape
    before = {key: value.clone() for key, value in model.state_dict().items()}
    replay = Replay(model, part)
    for chosen in ([0, 1, 2], [2, 0], [1]):  # the second and third time, shapes are only computed
        batch = make([rows[index] for index in chosen])
        model.load_state_dict(before)
        whole = run(batch)
        whole.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        model.load_state_dict(before)
        if "pixel_values" in batch:
            batch["pixel_values"] = torch.zeros(()).expand(batch["pixel_values"].shape)
        logits = replay(lambda batch=batch: run(batch), [recorded[index] for index in chosen])
        assert torch.allclose(logits, whole, atol=1e-5)
        logits.square().sum().backward()
        for parameter, expected in zip(model.parameters(), gradients, strict=True):
            assert (parameter.grad is None) == (expected is None)
            assert expected is None or torch.allclose(parameter.grad, expected, atol=1e-5)
        model.zero_grad(set_to_none=True)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
