"""Inference with finished runs: score them again, predict new inputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import Tensor, nn

from sft_hf.core import console
from sft_hf.core.errors import DataError, UserError, did_you_mean
from sft_hf.core.recipe.recipe import Recipe, validate_recipe
from sft_hf.core.recipe.sections import MEMORY
from sft_hf.core.run.folder import load_run_recipe, open_run
from sft_hf.data.columns import TARGET_KEYS
from sft_hf.data.examples import Examples
from sft_hf.data.loading.split_names import ROLES, SPLIT_COLUMNS
from sft_hf.engine import process
from sft_hf.engine.evaluation import batch_sizes, predict
from sft_hf.models.cpu.kernels import with_cpu_kernels
from sft_hf.models.speed import uses_cpu_kernels
from sft_hf.tasks.base import Task, task_class
from sft_hf.tasks.scoring.intervals import CONFIDENCE_SAMPLES

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.data.new_inputs.inputs import Input

log = logging.getLogger("sft_hf")

SHOWN = 3  # reasons in the error message if no input can be answered
OPTIONS = ("literal", "probabilities", "batch_size", "mixed_precision", "trust_remote_code")  # of every task
OF_SPEECH = ("timestamps", "window")
MOST_WAITING = 10_000  # bad inputs that are buffered until one input is answered


def open_trained(
    run: str | Path, *, trust_remote_code: bool = False, **task_settings: Any
) -> tuple[Recipe, Task[Any], Any]:
    """Return recipe, task and model of a finished run.

    `trust_remote_code` allows a model with its own code, if the run had one; `task_settings` replace the recipe's.
    Raises UserError for a setting that the task does not have, RunFolderError, CheckpointError, RecipeError.
    """
    console.show_log()
    folder = open_run(run)
    recipe = load_run_recipe(folder.path, trust_remote_code=trust_remote_code)
    for name in task_settings:
        if not hasattr(recipe.task, name):
            known = sorted({*OPTIONS, *type(recipe.task).model_fields} - {"name"})
            hint = "that is for speech recognition" if name in OF_SPEECH else did_you_mean(name, known, limit=40)
            raise UserError(f"{run}: {recipe.task.name} has no option {name!r}; {hint}")
    if task_settings:
        settings = {**recipe.task.model_dump(mode="json"), **task_settings}
        recipe = validate_recipe({**recipe.model_dump(mode="json"), "task": settings}, str(run))
    task, model = task_class(recipe).restore(recipe, folder.model)
    return recipe, task, model.eval()


def evaluate_run(
    run: str | Path, split: str = "test", *, mixed_precision: str = "no", trust_remote_code: bool = False
) -> dict[str, Any]:
    """Score a run's model on one of its splits again, and return the metrics with intervals and per-class values.

    Raises RunFolderError for a folder without a finished run, DataError for a split that does not exist.
    """
    check_split(Path(run), split, load_run_recipe(open_run(run).path, trust_remote_code=trust_remote_code))
    predictor = Predictor(*open_trained(run, trust_remote_code=trust_remote_code))
    rows, where = rows_of_split(predictor, split)
    return scored(predictor, rows, where, mixed_precision)


def check_split(path: Path, split: str, recipe: Recipe, *, given: bool = False) -> None:
    """Check the name of a split before the model is loaded, and that its rows can be read again.

    `given`: whether rows from memory are still there. Raises DataError.
    """
    if split not in ROLES:
        raise DataError(f"{path}: no split {split[:80]!r}; {did_you_mean(split, ROLES)}")
    if recipe.data.name == MEMORY and not given:
        raise DataError(
            f"{path}: the rows of {split} were in memory and are not saved with the run; pass labelled rows in Python, "
            "as in run.evaluate(df). The scores of the run are in metrics.json (run.metrics)"
        )


def rows_of_split(predictor: Predictor, split: str, given: Mapping[str, Dataset] | None = None) -> tuple[Dataset, str]:
    """Return a split of a run's data, and its name in messages.

    `given`: the rows of a run whose data were in memory. Raises DataError for a split that does not exist.
    """
    from sft_hf.jobs.inputs import load_data  # imports `datasets`, half a second that `predict` does not need

    splits = load_data(predictor.recipe, predictor.task, None, given)
    if split not in splits.by_role:
        raise DataError(f"no split {split!r} in this run's data; {did_you_mean(split, splits.by_role)}")
    rows = splits.by_role[split]
    if predictor.recipe.data.streaming and split == "train":
        raise DataError("streamed rows (data.streaming) are not stored and cannot be scored; evaluate another split")
    return rows, splits.where[split]  # type: ignore[return-value]


def rows_to_score(predictor: Predictor, data: Any) -> tuple[Dataset, str]:
    """Return labelled rows in memory, read like a split of the run, and their name in messages. Raises DataError."""
    from sft_hf.data.in_memory.splits import as_dataset
    from sft_hf.data.loading.memory import splits_in_memory

    task, section = predictor.task, predictor.recipe.data
    table = as_dataset(data, "data", section, task.reader.columns())
    spare = [
        name for name in table.column_names if name in SPLIT_COLUMNS and name not in task.reader.columns().values()
    ]
    splits = splits_in_memory(section, {"train": table.remove_columns(spare)}, task.reader.columns())
    splits = task.read_labels(replace(splits, where={"train": "data"}))
    return splits.by_role["train"], "data"  # type: ignore[return-value]


def scored(
    predictor: Predictor, rows: Dataset, where: str, mixed_precision: str = "no", *, announce: bool = True
) -> dict[str, Any]:
    """Return the metrics of rows with intervals and per-class values. Raises DataError for rows without labels."""
    recipe, task = predictor.recipe, predictor.task
    accelerator = process.build_accelerator(mixed_precision, recipe.train.num_threads, announce=announce)
    examples = task.prepare(rows, where)
    if not examples.labelled:
        raise DataError(
            f"{where}: its rows have no labels, so there is nothing to score; the run's "
            "predictions.jsonl holds its predictions, and `sft-hf predict` answers other rows"
        )
    outputs = predict(
        task,
        predictor.model.to(accelerator.device),
        examples,
        accelerator,
        **batch_sizes(recipe, task, accelerator),
        description=f"evaluating {where}",
    )
    return task.scorer.score(outputs, examples, CONFIDENCE_SAMPLES)


def input_columns(task: Task[Any]) -> list[str]:
    """Return the input columns of a task, without references."""
    return [column for key, column in task.reader.columns().items() if not key.startswith(TARGET_KEYS)]


def paths_of(inputs: Any) -> list[Any]:
    """Return texts and paths as a list. Raises DataError for an input that is empty or neither of these."""
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    kind = type(inputs).__name__
    if inputs is None or isinstance(inputs, (bytes, dict)) or hasattr(inputs, "columns"):
        hint = " (of a DataFrame's column: list(frame['text']))" if hasattr(inputs, "columns") else ""
        raise DataError(f"the inputs are a {kind}; give a list of texts or paths{hint}")
    found = list(inputs) if isinstance(inputs, Iterable) else [inputs]
    for index, value in enumerate(found):
        if not isinstance(value, (str, os.PathLike)):
            raise DataError(f"input {index} is a {type(value).__name__}, {value!r:.40}; give a text or a path")
        if not os.fspath(value).strip():
            raise DataError(f"input {index} is an empty text")
    return found


def answers(
    run: str | Path | Callable[..., Predictor],
    inputs: Sequence[Any],
    *,
    literal: bool = False,
    probabilities: bool = False,
    batch_size: int | None = None,
    mixed_precision: str | None = None,
    trust_remote_code: bool = False,
    **task_settings: Any,
) -> Iterator[dict[str, Any]]:
    """Yield one answer per input, in input order: `id`, `path`, `row`, the input's columns, `prediction`, `confidence`.

    A bad input has `prediction` None and the reason as `error`; the others are still answered. `id` is the input's
    number, or the value of the table's `id` column; `row` counts from 0. Inputs are read and answered in chunks, so a
    file may be larger than memory.

    Args:
        run: a run folder, or a function from task settings to a `Predictor`.
        inputs: texts, paths, open text files (one text per line).
        literal: treat every input as a text, even if a file of that name exists.
        probabilities: add `probabilities`, {label: probability} of all classes.
        batch_size: rows per forward pass; None: the recipe's.
        mixed_precision: no (float32, as in a Transformers pipeline), bf16, fp16 or auto (what the hardware supports);
            None: the task's default. Classifiers recompute close calls in float32, so that reduced precision changes
            confidences, but rarely an answer.
        trust_remote_code: see `open_trained`.
        task_settings: replace the recipe's; with `timestamps=True`, speech gets `segments`: {"start", "end", "text"},
            in seconds.

    Raises RunFolderError, UserError; DataError at the end if no input was answered.
    """
    if callable(run):
        predictor = run(**task_settings)
    else:
        predictor = Predictor(*open_trained(run, trust_remote_code=trust_remote_code, **task_settings))
    chunks = predictor.task.reader.read_inputs(inputs, literal)
    rows = predictor.answers(
        chunks, probabilities=probabilities, batch_size=batch_size, mixed_precision=mixed_precision
    )
    yield from _unless_all_failed(rows)


class Predictor:
    """A trained model, loaded once, that predicts inputs."""

    def __init__(self, recipe: Recipe, task: Task[Any], model: Any) -> None:
        self.recipe, self.task, self.model = recipe, task, model
        self._has_kernels = False

    def answers(
        self,
        chunks: Iterable[Sequence[Input]],
        *,
        probabilities: bool = False,
        batch_size: int | None = None,
        mixed_precision: str | None = None,
        announce: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Yield one answer per input, bad ones with an `error`.

        `announce`: log device and precision. The other options are those of the function `answers`.
        """
        task, precision = self.task, mixed_precision or self.task.predict_precision
        accelerator = process.build_accelerator(precision, self.recipe.train.num_threads, announce=announce)
        self.model.to(accelerator.device)
        uses_kernels = uses_cpu_kernels(self.recipe.train, accelerator.device)
        if accelerator.mixed_precision == "bf16" and uses_kernels and not self._has_kernels:
            with_cpu_kernels(self.model)
            self._has_kernels = True
        sizes = batch_sizes(self.recipe, task, accelerator, rows=batch_size)

        def answer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            examples = task.reader.prepare_inputs(rows)
            for note in examples.notes:
                log.info("%s", note)
            outputs = _outputs(task, self.model, examples, accelerator, sizes)
            decoded = task.scorer.decode_inputs(outputs, examples)
            if not probabilities:
                return decoded
            classes = task.scorer.class_probabilities(outputs)
            if classes is None:
                raise UserError(f"--probabilities (probabilities=True): {self.recipe.task.name} has no classes")
            return [{**row, "probabilities": found} for row, found in zip(decoded, classes, strict=True)]

        numbered = enumerate(one for chunk in chunks for one in _answered(task, chunk, answer))
        for number, (one, found) in numbered:
            yield {**one.described(number), **found}


def _answered(
    task: Task[Any], chunk: Sequence[Input], answer: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> Iterator[tuple[Input, dict[str, Any]]]:
    """Yield every input of a chunk with its answer, or with an error."""
    errors = {place: one.error for place, one in enumerate(chunk) if one.error is not None}
    good = [place for place in range(len(chunk)) if place not in errors]
    try:
        found = answer([chunk[place].columns for place in good]) if good else []
    except DataError:  # a file that cannot be decoded: check them one by one
        errors |= {place: problem for place in good if (problem := _problem(task, chunk[place])) is not None}
        good = [place for place in good if place not in errors]
        found = answer([chunk[place].columns for place in good]) if good else []
    of_place = dict(zip(good, found, strict=True))
    for place, one in enumerate(chunk):
        yield one, of_place[place] if place in of_place else {"prediction": None, "error": errors[place]}


def _problem(task: Task[Any], one: Input) -> str | None:
    """Return why an input cannot be prepared for the model, or None; decodes the whole file."""
    try:
        examples = task.reader.prepare_inputs([one.columns])
        for index in range(len(examples)):
            task.collate([examples.features[index]])
    except DataError as error:
        return str(error) if one.table is None else f"{one.table} row {one.row}: {error}"
    return None


def _unless_all_failed(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows, bad ones only after the first answer (or if there are many). Raises DataError without an answer."""
    waiting: list[dict[str, Any]] = []
    failed: list[str] = []
    count, answered = 0, False
    for row in rows:
        count += 1
        answered = answered or "error" not in row
        if not answered and len(failed) < SHOWN:
            failed.append(row["error"])
        waiting.append(row)
        if answered or len(waiting) >= MOST_WAITING:
            yield from waiting
            waiting = []
    if count == 0:
        raise DataError("there is nothing to predict: the input holds no rows")
    if count == 1 and not answered:
        raise DataError(failed[0])
    if not answered:
        more = f"; and {count - len(failed)} more" if count > len(failed) else ""
        raise DataError(f"none of the {count} inputs can be answered: {'; '.join(failed)}{more}")


def _outputs(
    task: Task[Any], model: nn.Module, examples: Examples, accelerator: Accelerator, sizes: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the model's outputs; rows where reduced precision might change the answer are recomputed in float32."""
    outputs = predict(task, model, examples, accelerator, **sizes, description="predicting")
    close = None if accelerator.mixed_precision == "no" else task.scorer.close_calls(outputs)
    if close is None or not close.any():
        return outputs
    rows = close.nonzero()[:, 0].tolist()
    features = [examples.features[row] for row in rows]
    again = replace(examples, features=features, lengths=examples.lengths[rows], row_ids=examples.row_ids[rows])
    exact = predict(task, model, again, accelerator, **sizes, description="close calls", autocast=False)
    return {name: tensor.index_put((close,), exact[name]) for name, tensor in outputs.items()}
