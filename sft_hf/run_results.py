"""What a finished run tells: metrics.json and the lines of predictions.jsonl."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sft_hf.tasks.base import Examples, Task

CONFIDENCE_SAMPLES = 1000


def prediction_rows(task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl: row id, reference, prediction, confidence."""
    return [
        {"id": int(row_id), "reference": task.reference(reference), **decoded}
        for row_id, reference, decoded in zip(examples.row_ids, examples.references, task.decode(outputs), strict=True)
    ]
