"""Every row is scored once, whatever the batch size and the number of ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed_evaluation.py")
CASES = [f"{rows}x{batch}" for rows in range(1, 18) for batch in range(1, 7)]


@pytest.fixture(params=["text", "image"])
def recipe(request, make_recipe, make_image_recipe):
    """The tiny models: text, whose rows differ in length, and images."""
    if request.param == "text":
        return make_recipe()
    return make_image_recipe(data__test_fraction=0.6, data__test_split=None)


def scores_on_one_rank(recipe):
    spec = importlib.util.spec_from_file_location("distributed_evaluation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.all_scores(recipe)[0]


def reference(recipe):
    """Each row alone through the model, and plain means."""
    from sft_hf import process
    from sft_hf.run import _Run
    from sft_hf.run_folder import RunFolder

    run = _Run(recipe, RunFolder(Path(recipe.output_dir)), process.build_accelerator("no", 1))
    run.prepare()
    examples, losses, correct = run.examples["test"], [], []
    for row in range(17):
        batch = run.task.collate([examples.features[row]])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = run.training.model.eval()(**batch).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
        correct.append(int(logits.argmax(-1)) == int(labels))
    return np.array(losses), np.array(correct)


def test_any_number_of_rows_in_any_batches_on_one_rank_and_two(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(path), str(tmp_path / "scores")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"scores.rank{rank}").read_text()) for rank in (0, 1)]
    found.append(scores_on_one_rank(recipe))
    losses, correct = reference(recipe)
    for case in CASES:
        rows = int(case.split("x")[0])
        for scores in found:
            assert scores[case]["metrics"]["num_examples"] == rows
            assert scores[case]["metrics"]["accuracy"] == pytest.approx(correct[:rows].mean(), abs=1e-12)
            assert scores[case]["metrics"]["loss"] == pytest.approx(losses[:rows].mean(), abs=1e-6)
            assert scores[case]["losses"] == pytest.approx(losses[:rows], abs=1e-6)
            assert scores[case]["predictions"] == found[0][case]["predictions"]


def test_the_learning_rate_is_a_function_of_the_step_alone(commands, recipe_file, tmp_path):
    """On one rank and two, with 1 forward pass per update and 4, the trace is the same, and so are the losses."""
    traces = {}
    for ranks in (1, 2):
        for accumulation in (1, 4):
            folder = tmp_path / f"{ranks}-{accumulation}"
            running = commands.start_ranks(
                ranks,
                "finetune",
                str(recipe_file),
                f"train.per_device_train_batch_size={8 // ranks // accumulation}",
                f"train.gradient_accumulation_steps={accumulation}",
                "train.logging_steps=1",
                "model.config_overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
                "--output-dir",
                str(folder),
            )
            assert [rank.wait() for rank in running] == [0] * ranks, running[0].said()
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            traces[ranks, accumulation] = [line for line in lines if "loss" in line]
    plain = traces.pop((1, 1))
    assert len(plain) == 22 and len({line["learning_rate"] for line in plain}) > 15
    for lines in traces.values():
        assert [line["learning_rate"] for line in lines] == [line["learning_rate"] for line in plain]
        assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in plain], rel=1e-3)
