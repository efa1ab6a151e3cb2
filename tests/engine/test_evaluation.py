"""Every row is scored once, whatever the batch size and the number of ranks."""

from __future__ import annotations

import json

import distributed_evaluation
import numpy as np
import pytest
import torch
from small_runs import prepared
from tiers import long
from two_processes import run_on_two_processes

CASES = [f"{rows}x{batch}" for rows in range(1, 18) for batch in range(1, 7)]
FEW = ["1x1", "1x6", "2x1", "3x2", "7x4", "8x4", "9x4", "16x5", "17x1", "17x6"]


@pytest.fixture(params=["text", long("image")])
def recipe(request, make_recipe, make_image_recipe):
    """The tiny models: text, whose rows differ in length, and images."""
    if request.param == "text":
        return make_recipe()
    return make_image_recipe(data__test_fraction=0.6, data__test_split=None)


def reference(recipe):
    """Each row alone through the model, and plain means."""
    run = prepared(recipe)
    examples, losses, correct = run.examples["test"], [], []
    for row in range(17):
        batch = run.task.collate([examples.features[row]])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = run.training.model.eval()(**batch).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
        correct.append(int(logits.argmax(-1)) == int(labels))
    return np.array(losses), np.array(correct)


@pytest.mark.parametrize("cases", [FEW, long(CASES)], ids=["a few", "all"])
def test_any_number_of_rows_in_any_batches_on_one_rank_and_two(recipe, tmp_path, cases):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    run_on_two_processes(distributed_evaluation.__file__, path, tmp_path / "scores", *cases)
    found = [json.loads((tmp_path / f"scores.rank{rank}").read_text()) for rank in (0, 1)]
    found.append(distributed_evaluation.all_scores(recipe, cases)[0])
    losses, correct = reference(recipe)
    for case in cases:
        rows = int(case.split("x")[0])
        for scores in found:
            assert scores[case]["metrics"]["num_examples"] == rows
            assert scores[case]["metrics"]["accuracy"] == pytest.approx(correct[:rows].mean(), abs=1e-12)
            assert scores[case]["metrics"]["loss"] == pytest.approx(losses[:rows].mean(), abs=1e-6)
            assert scores[case]["losses"] == pytest.approx(losses[:rows], abs=1e-6)
            assert scores[case]["predictions"] == found[0][case]["predictions"]


@pytest.mark.parametrize("others", [[(2, 4)], long([(1, 4), (2, 1)])])
def test_the_learning_rate_is_a_function_of_the_step_alone(commands, recipe_file, tmp_path, others):
    """On one rank and two, with 1 forward pass per update and 4, the trace is the same, and so are the losses."""
    traces = {}
    for ranks, accumulation in [(1, 1), *others]:
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
