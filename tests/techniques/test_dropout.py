"""Setting every dropout probability, whatever the architecture calls it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from small_runs import briefly
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
)

from sft_hf.core.errors import RecipeError
from sft_hf.tasks.text.word_embeddings import WordEmbeddingsConfig, WordEmbeddingsForSequenceClassification
from sft_hf.techniques.regularization.dropout import Dropout
from sft_hf.techniques.regularization.settings import DropoutSettings

CALLS = {
    "text": ("checkpoint", AutoModelForSequenceClassification, {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}),
    "image": ("image_checkpoint", AutoModelForImageClassification, {"pixel_values": torch.ones(2, 3, 16, 16)}),
    "whisper": (
        "whisper_checkpoint",
        AutoModelForSpeechSeq2Seq,
        {"input_features": torch.ones(2, 40, 400), "decoder_input_ids": torch.tensor([[1, 2], [3, 4]])},
    ),
    "ctc": ("wav2vec2_checkpoint", AutoModelForCTC, {"input_values": torch.ones(2, 8000)}),
}


def apply(model, **settings):
    Dropout(DropoutSettings(**settings), SimpleNamespace()).prepare_model(model)
    return model.train()


def watched(monkeypatch, model, inputs):
    """The probabilities with which a training pass drops hidden states, and attention's weights."""
    hidden, attention = set(), set()
    plain, attend = functional.dropout, functional.scaled_dot_product_attention

    def dropout(x, p=0.5, training=True, inplace=False):
        if training:
            hidden.add(p)
        return plain(x, p, training, inplace)

    def attended(*arguments, **options):
        attention.add(options.get("dropout_p", 0.0))
        return attend(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "dropout", dropout)
        patch.setattr(functional, "scaled_dot_product_attention", attended)
        model(**inputs)
    return hidden, attention


@pytest.mark.parametrize("task", CALLS)
def test_every_dropout_of_a_forward_pass_has_the_probability(task, request, monkeypatch):
    fixture, auto, inputs = CALLS[task]
    model = auto.from_pretrained(request.getfixturevalue(fixture))
    hidden, attention = watched(monkeypatch, apply(model, probability=0.25, attention_probability=0.125), inputs)
    assert (hidden, attention) == ({0.25}, {0.125})
    hidden, attention = watched(monkeypatch, apply(model, probability=0.5), inputs)
    assert (hidden, attention) == ({0.5}, {0.5})


def test_none_keeps_what_the_checkpoint_has(checkpoint, monkeypatch):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    _, _, inputs = CALLS["text"]
    assert watched(monkeypatch, apply(model, probability=None), inputs) == ({0.1}, {0.1})
    assert watched(monkeypatch, apply(model, probability=None, attention_probability=0.3), inputs) == ({0.1}, {0.3})


def test_timm_reads_its_rate_and_word_vectors_their_modules(monkeypatch):
    model = apply(timm.create_model("efficientnet_lite0", num_classes=2), probability=0.25)
    assert watched(monkeypatch, model, {"x": torch.ones(2, 3, 32, 32)})[0] == {0.25}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2)
    vit = apply(vit, probability=0.25, attention_probability=0.125)
    assert watched(monkeypatch, vit, {"x": torch.ones(2, 3, 32, 32)}) == ({0.25}, {0.125})
    config = WordEmbeddingsConfig(vocab_size=9, embedding_size=4, pooling="mean", dropout=0.5, num_labels=2)
    words = apply(WordEmbeddingsForSequenceClassification(config), probability=0.25)
    assert watched(monkeypatch, words, CALLS["text"][2])[0] == {0.25}


def test_the_saved_config_is_the_checkpoints_own(make_recipe, checkpoint):
    short = {"train__max_steps": 1, "data__max_train_samples": 16, "eval__baseline": "none"}
    result = briefly(make_recipe(techniques=[{"name": "dropout", "probability": 0.4}], **short))
    saved, own = (json.loads((f / "config.json").read_text()) for f in (result.output_dir / "model", checkpoint))
    assert saved["hidden_dropout_prob"] == own["hidden_dropout_prob"] == 0.1


def test_a_model_without_dropout_is_refused():
    with pytest.raises(RecipeError, match="dropout: Linear has no dropout to set"):
        apply(nn.Linear(2, 2), probability=0.5)
