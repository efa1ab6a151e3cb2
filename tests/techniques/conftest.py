"""What several tests of techniques need."""

from __future__ import annotations

import json

import numpy as np
import pytest

SENTENCES = {"sport": "goal match team", "money": "bank rate dollar", "food": "bread cheese soup"}
FILLER = "the of and to in for on with at by was said".split()


@pytest.fixture
def first_step(make_recipe, tmp_path):
    """A function: techniques, labels of the training rows -> the loss of a run's first step, logits, label names.

    The loss is the one in log.jsonl, of a step over all rows. The logits, float64 [rows, labels], come from the saved
    model, opened by Transformers; the step has not moved it. So a test can compute the loss in its own way.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sft_hf.jobs.finetune import finetune

    def run(techniques, labels, **changes):
        lists = [[label] if isinstance(label, str) else label for label in labels]
        texts = [" ".join([*(SENTENCES[name] for name in names), *FILLER[index:]]) for index, names in enumerate(lists)]
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
        folder = tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        for split in ("train", "validation", "test"):
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        options = {
            "train__max_steps": 1,
            "train__per_device_train_batch_size": len(labels),
            "optim__name": "sgd",
            "optim__learning_rate": 1e-12,
            "eval__baseline": "none",
            "model__config_overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            "output_dir": str(tmp_path / "first_step"),
        }
        result = finetune(make_recipe(techniques=techniques, data__name=str(folder), **{**options, **changes}))
        log = [json.loads(line) for line in (result.output_dir / "log.jsonl").read_text().splitlines()]
        loss = next(line["loss"] for line in log if line.get("step") == 1 and "learning_rate" in line)
        model = AutoModelForSequenceClassification.from_pretrained(result.output_dir / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(result.output_dir / "model")
        with torch.no_grad():
            logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        return loss, np.asarray(logits, dtype=np.float64), names

    return run
