"""When memory runs out, smaller forward passes give the same gradient; when nothing helps, the run says so and ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import Killed, briefly, stop
from two_processes import run_on_two_processes

from sft_hf.core.errors import TrainingError
from sft_hf.engine.batches import MicroBatch
from sft_hf.engine.step import cut
from sft_hf.tasks.text.task import TextClassification

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def memory_for(monkeypatch):
    """Return a function that gives the device memory for so many rows."""
    plain = TextClassification.losses

    def limit(rows, from_call=0):
        calls = []

        def losses(self, model, batch):
            calls.append(len(batch["input_ids"]))
            values = plain(self, model, batch)  # the forward pass has been made: its traces have to go
            if len(calls) > from_call and len(batch["input_ids"]) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return values

        monkeypatch.setattr(TextClassification, "losses", losses)
        return calls

    return limit


def weights(result):
    return load_file(result.output_dir / "model" / "model.safetensors")


def difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_smaller_passes_give_the_same_gradients(make_recipe, tmp_path, memory_for, caplog):
    import logging

    logging.getLogger("sft_hf").propagate = True
    settings = {"model__config_overrides": NO_DROPOUT, "optim__name": "sgd", "optim__learning_rate": 0.1}
    settings |= {"eval__baseline": "none", "train__max_steps": 8}  # than a baseline it may be worse, with a warning
    plain = briefly(make_recipe(output_dir=str(tmp_path / "plain"), **settings))
    calls = memory_for(3, from_call=5)
    with caplog.at_level("WARNING", logger="sft_hf"):
        retried = briefly(make_recipe(output_dir=str(tmp_path / "retried"), **settings))
    assert calls[:10] == [8, 8, 8, 8, 8, 8, 4, 2, 2, 2]
    assert difference(weights(plain), weights(retried)) < 1e-6
    assert plain.metrics["train"]["final_loss"] == pytest.approx(retried.metrics["train"]["final_loss"], rel=1e-5)
    said = list(dict.fromkeys(record.getMessage() for record in caplog.records if record.levelname == "WARNING"))
    assert said[0].startswith("out of memory in step 6: from now on at most 4 rows per forward pass instead of 8")
    assert said[1].startswith("out of memory in step 6: from now on at most 2 rows")
    assert retried.metrics["train"]["rows_per_forward_pass"] == 2
    assert plain.metrics["train"]["rows_per_forward_pass"] == 8


def test_a_resumed_run_remembers_how_much_memory_there_is(make_recipe, tmp_path, memory_for, monkeypatch):
    """And so has the bits of one that was never interrupted, dropout included."""

    memory_for(4)
    whole = briefly(make_recipe(output_dir=str(tmp_path / "whole"), checkpoint__save_steps=2, train__max_steps=6))
    recipe = make_recipe(output_dir=str(tmp_path / "died"), checkpoint__save_steps=2, train__max_steps=6)
    stop(recipe, 3, Killed())
    calls = memory_for(4)
    resumed = briefly(recipe, resume=True)
    assert max(calls) == 4  # not one pass that is too large
    assert difference(weights(whole), weights(resumed)) == 0


def test_not_enough_for_one_row_is_a_clear_end(make_recipe, memory_for):
    memory_for(0)
    with pytest.raises(TrainingError, match="out of memory in step 1 with one row per forward pass; nothing was updat"):
        briefly(make_recipe())


def test_an_evaluation_takes_batches_in_halves(make_recipe, tmp_path, monkeypatch, caplog):
    import logging

    plain_result = briefly(make_recipe(train__max_steps=3, output_dir=str(tmp_path / "plain")))
    plain, sizes = TextClassification.predict_batch, []

    def predict_batch(self, model, batch):
        outputs = plain(self, model, batch)
        if len(batch["input_ids"]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        sizes.append(len(batch["input_ids"]))
        return outputs

    monkeypatch.setattr(TextClassification, "predict_batch", predict_batch)
    logging.getLogger("sft_hf").propagate = True
    with caplog.at_level("WARNING", logger="sft_hf"):
        result = briefly(make_recipe(train__max_steps=3, output_dir=str(tmp_path / "short")))
    assert "out of memory in evaluation: splitting the batch of 30 rows" in caplog.text
    assert max(sizes) <= 5
    assert result.metrics["test"]["accuracy"] == plain_result.metrics["test"]["accuracy"]
    assert result.metrics["test"]["loss"] == pytest.approx(plain_result.metrics["test"]["loss"], abs=1e-6)


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_recipe, monkeypatch):
    def losses(self, model, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(TextClassification, "losses", losses)
    with pytest.raises(RuntimeError, match="mat1"):
        briefly(make_recipe())


def test_cutting_keeps_every_row_once():
    batches = (MicroBatch((5, 3, 8, 1, 9)), MicroBatch((2,)), MicroBatch((7, 7), filler=True))
    for oom_splits in range(5):
        pieces = cut(batches, oom_splits)
        assert [row for piece in pieces for row in piece.rows] == [5, 3, 8, 1, 9, 2, 7, 7]
        assert max(len(piece.rows) for piece in pieces) == -(-5 // min(2**oom_splits, 5))
        assert [row for piece in pieces if piece.filler for row in piece.rows] == [7, 7]


ONE_RANK_IS_SHORT = """
import os, sys, torch
from sft_hf.tasks.text.task import TextClassification
plain = TextClassification.losses
def losses(self, model, batch):
    values = plain(self, model, batch)
    if os.environ["RANK"] == "1" and len(batch["input_ids"]) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return values
if sys.argv[1] == "short":
    TextClassification.losses = losses
from sft_hf.cli import main
main(sys.argv[2:])
"""


def test_one_rank_that_is_short_of_memory_leaves_no_other_waiting(recipe_file, tmp_path):
    (tmp_path / "script.py").write_text(ONE_RANK_IS_SHORT)
    for kind in ("plain", "short"):
        overrides = [
            "train.per_device_train_batch_size=4",
            "model.config_overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
            "optim={name: sgd, learning_rate: 0.1}",
            "train.max_steps=4",
        ]
        arguments = ["finetune", str(recipe_file), *overrides, "--output-dir", str(tmp_path / kind)]
        done = run_on_two_processes(tmp_path / "script.py", kind, *arguments)
    assert "at most 2 rows per forward pass instead of 4" in done.stderr
    first, second = (load_file(tmp_path / kind / "model" / "model.safetensors") for kind in ("plain", "short"))
    assert difference(first, second) < 1e-6


REALLY_SHORT = """
import resource, sys
from sft_hf.engine import loop
plain = loop.train
def train(training, state):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20, most[1]))
    plain(training, state)
    resource.setrlimit(resource.RLIMIT_AS, most)
loop.train = train
from sft_hf.cli import main
main(sys.argv[2:])
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits address space by what Linux's /proc says")
def test_a_real_lack_of_memory_is_met_with_smaller_passes(commands, recipe_file, data_folder, tmp_path):
    """The others here raise the error that it would."""

    (tmp_path / "script.py").write_text(REALLY_SHORT)
    (tmp_path / "data").mkdir()
    text = (data_folder / "train.csv").read_text().splitlines()
    (tmp_path / "data" / "train.csv").write_text("\n".join([text[0], *text[1:] * 160]) + "\n")
    overrides = ["train.per_device_train_batch_size=8192", "train.max_steps=1", f"data.name={tmp_path / 'data'}"]
    arguments = ["finetune", str(recipe_file), *overrides, "--output-dir", str(tmp_path / "run")]
    done = commands.python(tmp_path / "script.py", "64", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "out of memory in step 1: from now on at most 4096 rows per forward pass instead of 8192" in done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train"]["rows_per_forward_pass"] <= 4096


@pytest.mark.long  # a second process with gigabytes of its own
def test_peak_memory_is_this_process_own():
    """A run that a large program has started does not count that program's memory."""
    code = "from sft_hf.engine.process import peak_resident_bytes; print(peak_resident_bytes())"
    ballast = bytearray(1_200_000_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50_000_000 < int(done.stdout) < len(ballast) // 2
