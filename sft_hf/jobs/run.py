"""A finished run as a Python object: its metrics, and its model, which is loaded once."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.core.errors import DataError, UserError, did_you_mean
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.run.folder import RunFolder, load_run_recipe, open_run, whole
from sft_hf.core.run.outputs import SplitOutputs, read_outputs
from sft_hf.engine.process import state_kept
from sft_hf.jobs.inference import (
    Predictor,
    answers,
    check_split,
    input_columns,
    open_trained,
    paths_of,
    rows_of_split,
    rows_to_score,
    scored,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sft_hf.tasks.base import Task

SCORED = ("test", "validation")  # the splits in metrics.json, in display order


class Run:
    """A finished run.

        run = Run("runs/reviews")
        run.metrics["test"]["accuracy"]
        run.predict(["great", "awful"])

    The model is loaded on first use and kept in memory.

    Attributes:
        path: the run folder.
        hub_url: the URL on the Hub if the run has just been pushed; None otherwise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trust_remote_code: bool = False,
        splits: Mapping[str, Dataset] | None = None,
        hub_url: str | None = None,
    ) -> None:
        """Open a run folder. Only its metrics are read.

        Args:
            path: the run folder.
            trust_remote_code: allow a model with its own code, if the run had one.
            splits: the rows of a run whose data were in memory, for `evaluate`.
            hub_url: see above.

        Raises RunFolderError for a folder without a finished run.
        """
        self._folder: RunFolder = open_run(Path(path), with_model=False)
        self._folder.refuse_unfinished()
        self.path, self.hub_url = self._folder.path, hub_url
        self._trusted, self._splits = trust_remote_code, splits
        self._predictors: dict[str, Predictor] = {}

    # --- contents ------------------------------------------------------------------------------------------------

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_run_recipe(self.path, trust_remote_code=self._trusted)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json: `test` and `validation` with scores as fractions, `train`, `model`, ..."""
        return self._folder.finished() or {}

    @property
    def task(self) -> Task[Any]:
        """The task of the trained model, with its labels, thresholds and preprocessing."""
        return self._predictor().task

    @property
    def model(self) -> PreTrainedModel:
        """The trained model, in evaluation mode."""
        return self._predictor().model  # type: ignore[no-any-return]

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the model's outputs. Raises UserError for a task without them."""
        label_map = getattr(self.task, "label_map", None)
        if label_map is None:
            raise UserError(f"{self.path}: {self.recipe.task.name} has no labels here")
        return list(label_map.names)

    def outputs(self, split: str = "test") -> SplitOutputs:
        """Return the model's saved outputs for every row of a split: row ids, logits, references.

        Raises UserError for a split that was not saved, RunFolderError for a damaged file.
        """
        known = sorted(path.stem for path in self._folder.outputs.glob("*.safetensors"))
        if split not in known:
            hint = did_you_mean(split, known)
            raise UserError(
                f"{self.path}: no saved outputs for split {split[:80]!r}; {hint}. To predict new inputs, pass a list"
            )
        return read_outputs(self._folder.outputs_file(split))

    def predictions(self, split: str = "test") -> list[dict[str, Any]]:
        """Return the rows of predictions.jsonl: `id`, the text or path, `reference`, `prediction`, `confidence`, ...

        The file has the rows of test, or of validation if the run has no test split. Raises UserError for any other
        split, RunFolderError for a missing or damaged file.
        """
        file = self._folder.predictions_file
        rows: list[dict[str, Any]] = whole(
            file, lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        )
        unlabelled_test = any("reference" not in row for row in rows)
        saved = "test" if "test" in self.metrics or unlabelled_test else "validation"
        if split != saved:
            raise UserError(f"{file}: has the rows of {saved}, not of {split[:80]!r}; use run.predictions({saved!r})")
        return rows

    def _predictor(self, **task_settings: Any) -> Predictor:
        key = repr(sorted(task_settings.items()))
        if key not in self._predictors:
            opened = open_trained(self.path, trust_remote_code=self._trusted, **task_settings)
            self._predictors[key] = Predictor(*opened)
        return self._predictors[key]

    # --- use -----------------------------------------------------------------------------------------------------

    def predict(
        self,
        inputs: Any,
        *,
        probabilities: bool = False,
        batch_size: int | None = None,
        mixed_precision: str | None = None,
        **task_settings: Any,
    ) -> list[dict[str, Any]]:
        """Return one answer per input, in their order: `id`, the input, `prediction`, `confidence`.

        Args:
            inputs: a list or other sequence of inputs, or a table with the recipe's columns. For text models, strings
                are always texts. For images and speech, strings are file paths; Pillow images, arrays,
                {"array": ..., "sampling_rate": ...} and the bytes of files are also accepted.
            probabilities: add `probabilities`, {label: probability} of all labels.
            batch_size: rows per forward pass; None: the recipe's.
            mixed_precision: no, bf16, fp16 or auto; None: the task's default, see `predict_files`.
            task_settings: replace the recipe's task settings, such as `timestamps=True` for speech.

        An input that cannot be answered has `prediction` None and the reason as `error`.
        Raises UserError for options that the task does not have.
        """
        from sft_hf.data.in_memory.inputs import as_inputs

        predictor = self._predictor(**task_settings)
        values = as_inputs(inputs, input_columns(predictor.task))
        with state_kept():
            return list(
                predictor.answers(
                    predictor.task.reader.inputs_in_memory(values),
                    probabilities=probabilities,
                    batch_size=batch_size,
                    mixed_precision=mixed_precision,
                    announce=False,
                )
            )

    def probabilities(self, rows: Any = "test") -> np.ndarray:
        """Return the probability of every label, float32 [rows, labels], labels in the order of `labels`.

        Args:
            rows: "test" or "validation": the rows of that split as the run scored them, in the order of
                `outputs(split).row_id`; or inputs as for `predict`.

        For multi-label tasks, the probabilities of a row need not sum to 1. Raises UserError for a task without labels,
        for a split that was not saved, and for an input that cannot be answered.
        """
        if isinstance(rows, str):
            outputs = self.outputs(rows)
            if outputs.logits is None:
                raise UserError(f"{self.path}: {outputs.problem_type} has no probabilities of labels")
            return outputs.probabilities().astype(np.float32)
        told = self.predict(rows, probabilities=True)
        if failed := next((row["error"] for row in told if "error" in row), None):
            raise DataError(str(failed))
        names = self.labels
        found = [[row["probabilities"][name] for name in names] for row in told]
        return np.array(found, dtype=np.float32).reshape(len(found), len(names))

    def evaluate(self, data: Any = "test", *, mixed_precision: str = "no") -> dict[str, Any]:
        """Score the model, and return the metrics with intervals and per-class values.

        Args:
            data: the name of a split of the run's data, or labelled rows in memory, as for `finetune`.
            mixed_precision: no (float32, as in the run's own scoring), bf16, fp16 or auto.

        Raises DataError for a split that does not exist or whose rows were in memory of another process, and for rows
        that cannot be scored.
        """
        if isinstance(data, str):
            check_split(self.path, data, self.recipe, given=self._splits is not None)
        predictor = self._predictor()
        if isinstance(data, str):
            rows, where = rows_of_split(predictor, data, self._splits)
        else:
            rows, where = rows_to_score(predictor, data)
        with state_kept():
            return scored(predictor, rows, where, mixed_precision, announce=False)

    def report(self, output: str | os.PathLike[str] | None = None, *, refresh: bool = False) -> Path:
        """Return the path of the run's report, one HTML file; write it if it does not exist.

        Args:
            output: the path to write to; None: report.html in the run folder.
            refresh: write it even if it exists.
        """
        from sft_hf.jobs.results import write_report

        if output is None and not refresh and self._folder.report_file.is_file():
            return self._folder.report_file
        target = None if output is None else Path(output)
        return write_report(self.path, target, trust_remote_code=self._trusted)

    def push(self, repo_id: str, *, private: bool = True, revision: str | None = None) -> str:
        """Publish the model with its card on the Hub, in one commit; return its URL.

        Args:
            repo_id: `owner/name`, or `name` for your own account; created if it does not exist.
            private: whether a new repository is created as private.
            revision: the branch; None: main.

        Raises UserError for a repository that cannot be written, and for models that `sft-hf push` refuses.
        """
        from sft_hf.publishing.hub.push import push

        self.hub_url = push(self.path, repo_id, private=private, revision=revision).url
        return self.hub_url

    # --- display -------------------------------------------------------------------------------------------------

    def _scores(self) -> list[tuple[str, str, float, str]]:
        """Return split, metric, value and 95 % interval (as text) of the primary metric, for each scored split."""
        primary = str(self.metrics.get("primary_metric"))
        found = []
        for split in SCORED:
            scores = self.metrics.get(split, {})
            if isinstance(value := scores.get(primary), (int, float)):
                low, high = scores.get(f"{primary}_ci95") or (value, value)
                found.append((split, primary, value, f"{low:.4f} to {high:.4f}" if low < high else ""))
        return found

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{split} {metric} {value:.4f}{f' ({between})' if between else ''}"
            for split, metric, value, between in self._scores()
        )
        return f"Run({str(self.path)!r}: {self.metrics.get('task')}{f', {scores}' if scores else ''})"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: the scores with their intervals, the model, and the run folder."""
        head = "".join(f"<th>{name}</th>" for name in ("split", "metric", "value", "95 % interval", "rows"))
        rows = [
            (split, metric, f"{value:.4f}", between, str(self.metrics[split].get("num_examples", "")))
            for split, metric, value, between in self._scores()
        ]
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        task, name = self.metrics.get("task"), self.metrics.get("model", {}).get("name", "")
        return (
            f"<div><p><b>{html.escape(str(task))}</b>: {html.escape(str(name))}<br>"
            f"<code>{html.escape(str(self.path))}</code></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def predict_files(run: Run | str | os.PathLike[str], paths: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield one answer per input in files, like `sft-hf predict`, in chunks, so that files may be larger than memory.

    Args:
        run: a run, or its folder.
        paths: files, folders, patterns and tables, as a list or other iterable, or a single one. For text models, a
            string that is not the name of a file is a text.
        options: see `sft_hf.jobs.inference.answers`.

    An answer starts with the input's id, path and row; an input that cannot be answered has an `error`.
    Raises UserError; DataError, before anything is answered, for an input that is empty or not a text or path, and at
    the end if no input was answered.
    """
    opened = run._predictor if isinstance(run, Run) else Path(run)
    return answers(opened, paths_of(paths), **options)


def predict(run: Run | str | os.PathLike[str], inputs: Any, **options: Any) -> list[dict[str, Any]]:
    """Return one answer per input; see `Run.predict`. `run` may be a run folder."""
    return _opened(run).predict(inputs, **options)


def evaluate(run: Run | str | os.PathLike[str], data: Any = "test", **options: Any) -> dict[str, Any]:
    """Score a run's model on a split of its data, or on labelled rows; see `Run.evaluate`."""
    return _opened(run).evaluate(data, **options)


def _opened(run: Run | str | os.PathLike[str]) -> Run:
    return run if isinstance(run, Run) else Run(run)
