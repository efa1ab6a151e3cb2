"""Label smoothing: torch's own, and in a run and of tokens a loop over plain numbers."""

import math

import numpy as np
import pytest
import torch
from tiers import long
from torch.nn import functional

from sft_hf.core.recipe.registry import load_component
from sft_hf.core.sources.sources import resolve
from sft_hf.engine.technique_stack import cross_entropy
from sft_hf.jobs.inputs import load_data
from sft_hf.techniques.regularization.label_smoothing import smoothed

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]
LISTS = [["sport"], ["sport", "money"], [], ["food"], ["sport", "money", "food"]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_it_is_torchs(smoothing):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = smoothed(cross_entropy(logits), smoothing).gather(1, labels[:, None])[:, 0]
    wanted = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("labels", [LABELS, long(LISTS)], ids=["single", "multi"])
def test_a_run_trains_on_it(first_step, labels):
    loss, logits, names = first_step([{"name": "label_smoothing", "smoothing": 0.2}], labels)
    rows = []
    for values, label in zip(logits.tolist(), labels, strict=True):
        if isinstance(label, str):
            share = {name: 0.2 / 3 + 0.8 * (name == label) for name in names}
            total = math.log(sum(math.exp(value) for value in values))
            rows.append(sum(share[name] * (total - value) for name, value in zip(names, values, strict=True)))
            continue
        yes = [1 / (1 + math.exp(-value)) for value in values]
        share = {name: 0.1 + 0.8 * (name in label) for name in names}
        own = [-share[n] * math.log(p) - (1 - share[n]) * math.log(1 - p) for n, p in zip(names, yes, strict=True)]
        rows.append(np.mean(own))
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


def test_every_token_of_a_transcript_is_smoothed(make_speech_recipe):
    recipe = make_speech_recipe(task__window="full")
    task, source = load_component("tasks", "speech_recognition")(recipe), resolve(recipe.model.name)
    splits = load_data(recipe, task, source)
    examples = task.prepare(splits.by_role["train"], splits.where["train"])
    model = task.build_model(source, recipe.model).eval()
    batch = task.collate([examples.features[row] for row in range(3)])
    with torch.no_grad():
        found = task.items(model, batch).row_losses(lambda logits: smoothed(cross_entropy(logits), 0.2))
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "seconds"}).logits
    for row in range(3):
        wanted = 0.0
        for values, token in zip(logits[row].tolist(), batch["labels"][row].tolist(), strict=True):
            if token != -100:
                total = math.log(sum(map(math.exp, values)))
                wanted += 0.8 * (total - values[token]) + 0.2 * (total - sum(values) / len(values))
        assert found[row].item() == pytest.approx(wanted, rel=1e-4)
