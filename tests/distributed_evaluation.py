"""Run by test_evaluation.py on one rank and under torchrun on two: scores n rows in batches of m.

usage: distributed_evaluation.py RECIPE OUTPUT NxM...
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.data.examples import Examples
from sft_hf.engine import process
from sft_hf.engine.evaluation import predict
from sft_hf.jobs.job import TrainingJob


def first_rows(examples: Examples, count: int) -> Examples:
    """The first rows alone."""
    features = [examples.features[row] for row in range(count)]
    return replace(
        examples,
        features=features,
        lengths=examples.lengths[:count],
        row_ids=examples.row_ids[:count],
        references=examples.references[:count],
    )


def all_scores(recipe: Recipe, cases: list[str]) -> tuple[dict[str, Any], int]:
    """Metrics and predictions by case, "<rows>x<batch size>", and the number of processes."""
    run = TrainingJob(recipe)
    run.prepare()
    found = {}
    for case in cases:
        rows, batch_size = map(int, case.split("x"))
        examples = first_rows(run.examples["test"], rows)
        outputs = predict(run.task, run.training.model, examples, run.accelerator, batch_size=batch_size)
        found[case] = {
            "metrics": run.task.scorer.score(outputs, examples),
            "predictions": [row["prediction"] for row in run.task.scorer.decode(outputs)],
            "losses": outputs["loss"].tolist(),
        }
    return found, run.accelerator.num_processes


if __name__ == "__main__":
    scores, processes = all_scores(load_recipe(sys.argv[1]), sys.argv[3:])
    assert processes == 2, processes
    Path(sys.argv[2] + f".rank{process.os.environ['RANK']}").write_text(json.dumps(scores))
