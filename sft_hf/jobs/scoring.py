"""Score the splits of a run: validation during training, to choose weights; all splits at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sft_hf.core.errors import RecipeError, did_you_mean
from sft_hf.core.run.folder import RunFolder
from sft_hf.data.examples import Examples
from sft_hf.data.loading.roles import Splits
from sft_hf.engine import selection
from sft_hf.engine.evaluation import batch_sizes, predict
from sft_hf.engine.resume import checkpoint
from sft_hf.engine.state import Training, TrainState
from sft_hf.jobs.results import prediction_rows
from sft_hf.models.adapters.files import Adapter
from sft_hf.tasks.base import Task
from sft_hf.tasks.scoring.intervals import CONFIDENCE_SAMPLES

log = logging.getLogger("sft_hf")


def metric_for_best_model(task: Task[Any], examples: Mapping[str, Examples]) -> str | None:
    """Return the metric by which weights are chosen; None without a validation split. Raises RecipeError."""
    section = task.recipe.eval
    wanted, known = section.metric_for_best_model, task.scorer.metric_names()
    if wanted and wanted not in known:
        raise RecipeError(f"eval.metric_for_best_model: no metric {wanted!r}; {did_you_mean(wanted, known)}")
    if "validation" not in examples:
        if section.early_stopping_patience:
            raise RecipeError("eval.early_stopping_patience: early stopping requires a validation split")
        return None
    return wanted or task.scorer.primary_metric


def split_outputs(
    training: Training, model: Any, examples: Examples, role: str, *, autocast: bool
) -> dict[str, Tensor]:
    """Return the outputs of `Task.predict_batch` for every row of a split, in row order, the same on every rank."""
    return predict(
        training.task,
        model,
        examples,
        training.accelerator,
        **batch_sizes(training.recipe, training.task, training.accelerator, autocast=autocast),
        description=f"evaluating {role}",
        autocast=autocast,
    )


# --- during training ---------------------------------------------------------------------------------------------


def choose_weights(
    training: Training, validation: Examples, metric: str, state: TrainState, save_best: Callable[[int], None]
) -> bool:
    """Score validation, save the weights if they are the best so far, and return whether to stop early.

    Args:
        training, state: the run at the current step.
        validation: the rows.
        metric: the metric by which weights are chosen.
        save_best: saves the current weights as those of a step.
    """
    with training.techniques.evaluated(training.accelerator.unwrap_model(training.model)):
        outputs = split_outputs(training, training.model, validation, "validation", autocast=True)
        training.task.scorer.tune(outputs, validation)
        metrics = training.task.scorer.score(outputs, validation)
        value = metrics[metric]
        better = selection.choose(state, value, metrics["loss"], lower=metric in training.task.scorer.lower_is_better)
        if better and training.recipe.eval.load_best_model_at_end:
            save_best(state.step)
    training.callbacks.evaluated(state.step, metrics)
    training.tell(
        {"step": state.step} | {f"eval_{name}": value for name, value in metrics.items() if isinstance(value, float)}
    )
    log.info(
        "step %d/%d: train loss %.4f, validation loss %.4f, %s %s%s",
        state.step,
        training.num_steps,
        state.loss,
        metrics["loss"],
        metric,
        "undefined" if value is None else f"{value:.4f}",
        " (best so far)" if better else "",
    )
    patience = training.recipe.eval.early_stopping_patience
    stop = patience is not None and state.evaluations_without_improvement >= patience
    if stop:
        log.info("stopping early: %d evaluations without a better %s", patience, metric)
    return stop


# --- at the end --------------------------------------------------------------------------------------------------


@dataclass
class Scored:
    """Results of the chosen model on validation and test, by role.

    `scores` are the metrics of the splits that have labels; `predictions` the lines of predictions.jsonl; `outputs` the
    outputs of `Task.predict_batch`, by row; `chosen` the values that techniques chose on validation.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)


def chosen_model(training: Training, adapter: Adapter | None, state: TrainState, folder: RunFolder) -> Any:
    """Return the model with the weights that are scored and saved: the best on validation, or the last."""
    # Without the mixed-precision wrapper, so that scores match those of the saved model when it is loaded.
    model = training.accelerator.unwrap_model(training.model, keep_fp32_wrapper=False)
    if training.recipe.eval.load_best_model_at_end and state.best_step not in (None, state.step):
        checkpoint.load_best(folder.checkpoints, state.best_step, model)
        log.info("kept the weights of step %d, the best on validation", state.best_step)
    else:
        training.techniques.load_averaged_weights(model)
    training.task.finish_model(model)
    return model if adapter is None else adapter.finish(model)


def score_splits(training: Training, model: Any, examples: Mapping[str, Examples], splits: Splits) -> Scored:
    """Score the chosen model in float32: on validation, which thresholds are tuned on, then once on test."""
    task, found = training.task, Scored()
    for role, rows in examples.items():  # validation before test
        outputs = found.outputs[role] = split_outputs(training, model, rows, role, autocast=False)
        if role == "validation":
            task.scorer.tune(outputs, rows)
            found.chosen = training.techniques.after_training(task, outputs, rows)
        if rows.labelled:
            found.scores[role] = task.scorer.score(outputs, rows, CONFIDENCE_SAMPLES)
        found.predictions[role] = prediction_rows(task, outputs, rows, splits.by_role[role])
    return found
