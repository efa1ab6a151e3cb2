"""The record of a run: recipe, metrics, predictions and log, as read from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.run.folder import RunFolder, load_run_recipe, open_run, read_json_lines, whole
from sft_hf.core.run.outputs import SplitOutputs, read_outputs


@dataclass(frozen=True)
class RunRecord:
    """The record of a finished run, from which model cards and reports are written.

    `metrics` is metrics.json; `predictions` are the rows of predictions.jsonl that have a reference, of the split that
    was scored last (none for a test split without labels); `log` are the lines of log.jsonl: lines of training have a
    `loss`, lines of evaluations `eval_loss`. `outputs` are the model's outputs for the rows of `split`, if the run
    saved them and `with_outputs` read them.
    """

    name: str
    recipe: Recipe
    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    log: list[dict[str, Any]]
    outputs: SplitOutputs | None = None

    @property
    def split(self) -> str:
        """The split of the main result: test, or validation if there is no test."""
        return "test" if "test" in self.metrics else "validation"

    @property
    def unlabelled_test(self) -> bool:
        """Whether the test split has no labels, so that it was predicted but not scored."""
        splits = (self.metrics.get("data") or {}).get("splits") or {}
        return bool((splits.get("test") or {}).get("unlabelled"))

    @property
    def primary(self) -> str:
        """The name of the primary metric."""
        return str(self.metrics["primary_metric"])

    @property
    def scores(self) -> dict[str, Any]:
        """The metrics of `split`; empty if the run scored no split."""
        return dict(self.metrics.get(self.split, {}))


def read_record(path: str | Path, *, trust_remote_code: bool = False) -> RunRecord:
    """Read the record of a finished run. Raises RunFolderError, RecipeError."""
    folder = open_run(path, with_model=False)
    folder.refuse_unfinished()
    recipe = load_run_recipe(folder.path, trust_remote_code=trust_remote_code)
    metrics = whole(folder.metrics_file, lambda file: json.loads(file.read_text(encoding="utf-8")))
    predictions, log = (whole(file, read_json_lines) for file in (folder.predictions_file, folder.log_file))
    return RunRecord(folder.path.resolve().name, recipe, metrics, with_references(predictions), log)


def with_outputs(record: RunRecord, path: str | Path) -> RunRecord:
    """Return the record of the run at `path` with the outputs of its split, if it saved any. Raises RunFolderError."""
    file = RunFolder(Path(path).expanduser()).outputs_file(record.split)
    return replace(record, outputs=read_outputs(file)) if file.is_file() else record


def with_references(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of predictions.jsonl that have a reference."""
    return [row for row in predictions if "reference" in row]
