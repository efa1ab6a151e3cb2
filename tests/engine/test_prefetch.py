"""Batches that are made ahead of time: the right ones, errors where they belong, no generator touched."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from tiers import long

from sft_hf.core.errors import DataError
from sft_hf.engine import prefetch
from sft_hf.engine import step as steps
from sft_hf.engine.prefetch import OneAhead
from sft_hf.techniques.base import TrainBatch


def test_what_was_started_is_taken_and_anything_else_is_made():
    ahead: OneAhead[str] = OneAhead()
    threads = []

    def make(name):
        threads.append(threading.current_thread().name)
        return name

    ahead.start(1, lambda: make("started"))
    assert ahead.take(1, lambda: make("now")) == "started"
    assert ahead.take(1, lambda: make("now")) == "now"  # a second pass over the same step
    ahead.start(2, lambda: make("of another size"))
    assert ahead.take((2, "halved"), lambda: make("now")) == "now"
    assert threads[1] == threading.current_thread().name != threads[0]
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("next-batch")]


def test_only_what_computes_elsewhere_leaves_the_cpu_time_to_make_batches_ahead():
    assert [prefetch.pays(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [False, True, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, and memory is page-locked for one alone")
def test_batches_for_a_gpu_are_page_locked():
    batch = TrainBatch({"pixel_values": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)})
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(batch.pinned, torch.device("cuda", torch.cuda.current_device())).result()
    assert found.inputs["pixel_values"].is_pinned() and not batch.inputs["pixel_values"].is_pinned()
    assert found.inputs["pixel_values"].is_contiguous(memory_format=torch.channels_last)


def test_a_batch_that_stays_on_the_cpu_is_not_copied():
    batch = TrainBatch({"input_ids": torch.zeros(2, 3)}, partner={"input_ids": torch.ones(2, 3)})
    found = batch.pinned(torch.device("cpu"))
    assert found.inputs["input_ids"] is batch.inputs["input_ids"] and found.partner is batch.partner


def test_an_error_is_raised_where_the_batch_is_taken():
    ahead: OneAhead[str] = OneAhead()

    def fail():
        raise DataError("the picture is gone")

    ahead.start(1, fail)
    ahead.start(1, fail)  # nothing is made twice
    with pytest.raises(DataError, match="the picture is gone"):
        ahead.take(1, lambda: "now")
    ahead.close()


@pytest.mark.parametrize("maker", [long("make_recipe"), "make_image_recipe", long("make_speech_recipe")])
def test_a_run_makes_its_batches_ahead_with_the_same_result(maker, request, tmp_path, monkeypatch):
    make = request.getfixturevalue(maker)
    settings = {"train__max_steps": 4, "train__gradient_accumulation_steps": 2, "train__per_device_train_batch_size": 1}
    made = []
    real = steps._collate

    def watched(*arguments):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        found = real(*arguments)
        ahead = threading.current_thread().name.startswith("next-batch")
        made.append(ahead)
        if not ahead:  # else the step itself draws meanwhile
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        return found

    monkeypatch.setattr(steps, "_collate", watched)
    monkeypatch.setattr(prefetch, "pays", lambda device: True)
    ahead = briefly(make(output_dir=str(tmp_path / "ahead"), **settings))
    assert sum(made) == 3 and not made[0]
    monkeypatch.undo()  # this is a CPU
    monkeypatch.setattr(steps, "_collate", watched)
    made.clear()
    alone = briefly(make(output_dir=str(tmp_path / "alone"), **settings))
    assert made == [False] * 4
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (ahead, alone))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("next-batch")]
