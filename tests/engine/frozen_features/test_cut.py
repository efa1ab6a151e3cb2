"""Where the frozen lower part ends, and when nothing can be cut off."""

from __future__ import annotations

import pytest
import torch
from small_runs import prepared

from sft_hf.engine import loop
from sft_hf.engine.frozen_features import build as frozen_features
from sft_hf.engine.frozen_features.trace import Declined, find_frozen_part
from sft_hf.models.freezing import evaluate_frozen_parts


def run_of(recipe):
    run = prepared(recipe)
    run.training.model.train()
    evaluate_frozen_parts(run.training.model)
    return run


def part_of(recipe):
    run = run_of(recipe)
    examples = run.training.data.examples
    batch = run.task.collate([examples.features[row] for row in (0, 1)])
    return find_frozen_part(run.training.model, lambda: run.task.losses(run.training.model, batch))


@pytest.mark.parametrize(
    ("kind", "modules", "consumers"),
    [
        ("bert_probe", {"bert"}, {"dropout"}),
        ("bert_lower", {"bert.embeddings", "bert.encoder.layer.0"}, {"bert.encoder.layer.1"}),
        ("vit_probe", {"vit"}, {"classifier"}),
        ("whisper_encoder", {"model.encoder"}, {"model.decoder"}),
        ("wav2vec2_probe", {"wav2vec2"}, {"lm_head"}),
    ],
)
def test_the_cut_is_where_the_trained_part_begins(kinds, kind, modules, consumers):
    found = part_of(kinds[kind]())
    assert set(found.modules) == modules
    assert {cut.module for cut in found.cuts} == consumers
    assert found.tensors == 1


def test_timm_is_cut_before_its_classifier(kinds):
    found = part_of(kinds["timm_probe"]())
    assert [cut.module for cut in found.cuts] == ["timm_model.classifier"]
    assert "timm_model.blocks" in found.modules
    assert "timm_model.global_pool" in set(found.skipped) - set(found.modules)


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (["bert.embeddings"], "only embeddings"),
        (["bert.encoder.layer.0"], "nothing below"),
        (["bert.embeddings", "bert.encoder.layer.0.output.dense"], "only embeddings"),  # a skip connection around it
    ],
)
def test_where_nothing_can_be_cut_off_the_reason_is_told(make_recipe, patterns, reason):
    with pytest.raises(Declined, match=reason):
        part_of(make_recipe(train__freeze=patterns))


def test_frozen_word_vectors_are_not_worth_a_cache():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.embeddings(ids).mean(1))

    model = Model()
    model.embeddings.weight.requires_grad_(False)
    with pytest.raises(Declined, match="only embeddings"):
        find_frozen_part(model, lambda: model(torch.tensor([[1, 2], [3, 4]])))


def test_a_skip_connection_around_a_trained_layer_is_kept_whole():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.trained, self.norm = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            y = self.frozen(x)
            return self.norm(y + self.trained(y))

    model = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), Block(), torch.nn.Linear(4, 2))
    found = find_frozen_part(model, lambda: model(torch.ones(2, 4)))
    assert found.modules == ("0",)
    assert [cut.module for cut in found.cuts] == ["1"]
    with pytest.raises(Declined, match="interleaved"):
        block = Block()
        find_frozen_part(block, lambda: block(torch.ones(2, 4)))


def test_runs_that_freeze_nothing_are_left_alone(make_recipe, monkeypatch):
    monkeypatch.setattr(frozen_features, "_Builder", None)
    run = run_of(make_recipe())
    assert frozen_features.with_frozen_features(run.training, loop.TrainState()) is run.training
