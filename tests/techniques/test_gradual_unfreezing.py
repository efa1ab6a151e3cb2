"""Gradual unfreezing: what is trained in which step, what stands still until then, and resuming in between."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly, interrupted_and_resumed
from tiers import long

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.techniques.transfer.gradual_unfreezing import groups_trained

PARTS = ["classifier", "bert.encoder.layer.1", "bert.encoder.layer.0", "bert.embeddings"]  # the pooler goes with 1
SHORT = {"train__max_steps": 6, "data__max_train_samples": 32, "data__max_test_samples": 6, "eval__baseline": "none"}
SHORT |= {"data__max_validation_samples": 6, "eval__load_best_model_at_end": False, "train__logging_steps": 1}


@pytest.mark.parametrize("interval", [0.5, 1, 2.5, 3])
def test_one_more_group_joins_after_each_interval(interval):
    for step in range(20):
        joined = sum(1 for group in range(5) if step >= group * interval)  # group 0 is there from the beginning
        assert groups_trained(step, 5, interval) == joined
    assert groups_trained(0, 5, 0) == 5


@pytest.fixture
def watched(monkeypatch):
    """What each step finds: which parts are trained, which modules are in training mode, and the weights."""
    seen = []
    step = loop.train_step

    def watching(training, *arguments):
        parameters = dict(training.model.named_parameters())
        seen.append(
            {
                "trained": {name for name, parameter in parameters.items() if parameter.requires_grad},
                "modes": {name: module.training for name, module in training.model.named_modules()},
                "weights": {name: parameter.detach().clone() for name, parameter in parameters.items()},
            }
        )
        return step(training, *arguments)

    monkeypatch.setattr(loop, "train_step", watching)
    return seen


def of_parts(names, parts):
    return {name for name in names if name.startswith(tuple(f"{part}." for part in parts))}


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"fraction": 0.5}, [1, 2, 3, 4, 4, 4]),  # all after three of six steps
        long(({"fraction": 1.0}, [1, 1, 2, 2, 3, 3])),
        ({"epochs_per_layer": 0.5}, [1, 1, 2, 2, 3, 3]),  # an epoch has four steps
        long(({"fraction": 0.0}, [4] * 6)),
    ],
)
def test_layers_join_from_the_top(make_recipe, watched, settings, counts):
    options = {"optim__weight_decay": 0.5, "optim__warmup_ratio": 0.0, **SHORT}
    result = briefly(make_recipe(techniques=[{"name": "gradual_unfreezing", **settings}], **options))
    last = load_file(result.output_dir / "model" / "model.safetensors")
    for step, count in enumerate(counts):
        state = watched[step]
        trained = of_parts(state["weights"], PARTS[:count])
        if count > 1:
            trained |= of_parts(state["weights"], ["bert.pooler"])
        assert state["trained"] == trained, step
        after = watched[step + 1]["weights"] if step + 1 < len(watched) else last
        moved = {name for name in state["weights"] if not torch.equal(state["weights"][name], after[name])}
        assert moved <= trained  # no gradient, no momentum and no weight decay
        assert {name.partition("attention")[0] for name in trained} == {
            name.partition("attention")[0] for name in moved
        }
        for part, depth in (("bert.embeddings.dropout", 4), ("bert.encoder.layer.0.output.dropout", 3)):
            assert state["modes"][part] == (count >= depth)
        assert state["modes"]["dropout"] and state["modes"]["bert"] == (count > 1)


def test_what_train_freeze_names_is_never_unfrozen(make_recipe, watched):
    briefly(
        make_recipe(techniques=["gradual_unfreezing"], train__freeze=PARTS[2:], train__frozen_features="off", **SHORT)
    )
    assert [len(state["trained"]) > 2 for state in watched] == [False, False, False, True, True, True]
    assert not any(of_parts(state["trained"], PARTS[2:]) for state in watched)
    assert not any(state["modes"]["bert.embeddings.dropout"] for state in watched)


def test_the_frozen_part_may_come_from_the_cache(make_recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    found = []
    for cache in ("auto", "off"):
        caplog.clear()
        options = {"train__freeze": PARTS[2:], "train__frozen_features": cache, "output_dir": str(tmp_path / cache)}
        with caplog.at_level(logging.INFO, "sft_hf"):
            result = briefly(
                make_recipe(
                    techniques=["gradual_unfreezing"], optim__name="sgd", optim__learning_rate=0.1, **options, **SHORT
                )
            )
        assert ("runs once for each row" in caplog.text) == (cache == "auto")
        found.append(load_file(result.output_dir / "model" / "model.safetensors"))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop_at", [long(1), 2, long(5)])
def test_a_run_that_is_resumed_between_two_layers_has_the_same_bits(make_recipe, tmp_path, stop_at):
    options = {"techniques": ["gradual_unfreezing"], "checkpoint__save_steps": 1, **SHORT}
    whole = briefly(make_recipe(output_dir=str(tmp_path / "whole"), **options))
    resumed = interrupted_and_resumed(make_recipe(output_dir=str(tmp_path / "cut"), **options), stop_at)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [Path(run.output_dir, "log.jsonl").read_text().count('"grad_norm"') for run in (whole, resumed)]
    assert lines == [6, 6]


def test_epochs_of_a_stream_are_refused(make_recipe):
    with pytest.raises(RecipeError, match="epochs_per_layer: a stream has no known epochs"):
        make_recipe(
            techniques=[{"name": "gradual_unfreezing", "epochs_per_layer": 1}],
            data__streaming=True,
            train__max_steps=5,
        )
