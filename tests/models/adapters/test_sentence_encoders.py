"""Adapters on sentence encoders: the card's lines open them, and another class refuses them."""

from __future__ import annotations

import pytest
import torch
from adapted_models import opened_plainly
from sentence_encoders import sentence_encoder
from tiers import long
from transformers import AutoTokenizer, BertForSequenceClassification

from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.run import predict_files
from sft_hf.models.sentence_encoder import SentenceEncoderForSequenceClassification


@pytest.mark.parametrize("peft", ["LORA", long("IA3"), long("PROMPT_TUNING")])
def test_adapters_open_by_the_lines_of_their_card(peft, make_recipe, checkpoint, tmp_path):
    encoder_folder = sentence_encoder(checkpoint, tmp_path / "encoder")
    section = {"peft_type": peft} | ({"num_virtual_tokens": 3} if peft == "PROMPT_TUNING" else {})
    result = finetune(make_recipe(model__name=str(encoder_folder), train__max_steps=4, peft=section))
    answers = list(predict_files(result.output_dir, ["goal match team", "bank rate"]))

    base = SentenceEncoderForSequenceClassification.from_encoder(str(encoder_folder), pooling="mean", num_labels=3)
    model = opened_plainly(base, result.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.output_dir / "model")
    with torch.no_grad():
        inputs = tokenizer(["goal match team", "bank rate"], return_tensors="pt", padding=True)
        best = model(**inputs).logits.softmax(-1).max(-1).values
    torch.testing.assert_close(best.tolist(), [answer["confidence"] for answer in answers], atol=1e-4, rtol=0)
    card = (result.output_dir / "adapter" / "README.md").read_text()
    assert "from_encoder" in card and "pooling='mean'" in card
    if peft == "LORA":  # never silently in a class that has other names
        other = BertForSequenceClassification.from_pretrained(encoder_folder, num_labels=3)
        with pytest.raises(ValueError, match=r"[Tt]arget modules"):
            opened_plainly(other, result.output_dir)
