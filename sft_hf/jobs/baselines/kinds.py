"""The baselines: most frequent label, pretrained model, TF-IDF, frozen features."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.errors import RecipeError
from sft_hf.data.examples import Examples
from sft_hf.data.loading.roles import ROW_ID
from sft_hf.engine.process import on_main_process
from sft_hf.jobs.baselines.base import FIRST_ROWS, Baseline, Budget, Run, predict_within, scored
from sft_hf.jobs.baselines.linear import (
    Fit,
    Words,
    cross_fitted,
    fitted_within,
    import_scikit_learn,
    logistic_on_features,
    logistic_on_words,
)
from sft_hf.tasks.base import Batch, Task
from sft_hf.tasks.scoring.intervals import CONFIDENCE_SAMPLES

log = logging.getLogger("sft_hf")

LEAST_FITTED = 500  # minimum training rows of a linear model, regardless of time


def most_frequent(run: Run) -> Baseline | None:
    """The most frequent answer in train; None for a task without one, and for a stream."""
    if run.train is None:
        return None
    answer = run.task.scorer.constant_answer(run.train.references, run.scored.references, CONFIDENCE_SAMPLES)
    if answer is None:
        return None
    sentence, metrics = answer
    predictions: list[Any] | None = None
    if (counts := run.task.scorer.label_counts(run.train.references)) is not None:
        label = max(counts, key=lambda name: counts[name])
        predictions = [[label] if run.multi_label else label] * len(run.scored)
    return Baseline(run.task.scorer.constant_name, sentence, metrics, predictions, np.arange(len(run.scored)))


def untrained(run: Run, budget: Budget) -> Baseline:
    """The pretrained model without fine-tuning, on inputs in the format it was trained on (Whisper: full windows)."""
    model = run.fresh_model()
    examples, how = run.task.as_pretrained(run.scored)
    rows, outputs = predict_within(run, run.task, model, examples, budget, "scoring the untrained model")
    return scored(run, "zero-shot", f"the pretrained model before training{how}", outputs, rows)


# --- words -------------------------------------------------------------------------------------------------------


def words(run: Run, budget: Budget) -> Baseline | None:
    """Logistic regression on TF-IDF of the words; None if texts or labels are missing or there is nothing to fit."""
    made: list[Baseline | None] = [None]
    # On one process: the others would compute the same on the same cores.
    on_main_process(run.accelerator, lambda: made.append(_words(run, budget)))
    return made[-1]


def _words(run: Run, budget: Budget) -> Baseline | None:
    train, texts = run.train, {role: own for role in run.examples if (own := read_texts(run, role)) is not None}
    if train is None or "train" not in texts:
        return None
    targets = _targets(run, train)
    if targets.any(axis=0).sum() < 2:
        return None

    import_scikit_learn()

    def fit(rows: np.ndarray) -> tuple[Any, ...]:
        own = _chosen(texts["train"], rows)
        vectors = Words(own)
        features = vectors(own)
        return rows, vectors, features, logistic_on_words(features, targets[rows])

    try:
        rows, vectors, features, logits = fitted_within(fit, run.order(len(train)), LEAST_FITTED, budget)
    except ValueError as error:  # scikit-learn's: the texts contain no words
        log.info("baseline skipped: TF-IDF: %s", error)
        return None
    tune = None
    if run.multi_label and "validation" in texts:
        tune = _outputs(logits(vectors(texts["validation"]))), run.examples["validation"]
    elif run.multi_label:
        tune = _cross_fitted(logistic_on_words, features, targets[rows], train.take(rows))
    outputs, everything = _outputs(logits(vectors(texts[run.split]))), np.arange(len(run.scored))
    sentence = f"logistic regression on TF-IDF of the {vectors.units}"
    return scored(run, "tf-idf", sentence, outputs, everything, tune).fitted_to(len(rows), len(train))


def read_texts(run: Run, role: str) -> list[list[str]] | None:
    """Return the texts of the prepared rows, [columns][rows]; None for a task that does not read texts."""
    table = run.tables.get(role)
    columns = None if table is None else run.task.reader.texts(table)
    if columns is None:
        return None
    places = {row_id: place for place, row_id in enumerate(run.tables[role][ROW_ID])}
    return _chosen(columns, [places[int(row)] for row in run.examples[role].row_ids])


def _chosen(columns: Any, rows: Any) -> list[list[str]]:
    return [[column[int(row)] for row in rows] for column in columns]


# --- frozen features ---------------------------------------------------------------------------------------------


def frozen_probe(run: Run, budget: Budget, least: int = FIRST_ROWS) -> Baseline | None:
    """Logistic regression on the inputs of the pretrained model's head (G. Alain and Y. Bengio, 2016).

    Args:
        run: the run.
        budget: the time budget.
        least: minimum number of training rows, regardless of time.

    Returns:
        None if the time did not suffice for two training rows per label.

    Raises:
        RecipeError: there is nothing to probe.
    """
    train = run.train
    if train is None:
        raise RecipeError(
            "eval.baseline: probe requires all training rows in memory; it does not support data.streaming"
        )
    labels = run.task.scorer.label_counts(train.references)
    if labels is None:
        raise RecipeError(f"eval.baseline: probe requires labels, and {run.recipe.task.name} has none here; use auto")
    model = run.fresh_model()
    wrapped = _Features(run.task, last_linear(model, len(labels)))
    share = len(run.scored) / (len(run.scored) + len(train))
    rows, answered = predict_within(run, wrapped, model, run.scored, budget.part(share), "probing scored rows")
    fitted, known = predict_within(run, wrapped, model, train, budget, "probing training rows", least)
    if len(fitted) < min(len(train), 2 * len(labels)):
        log.info("baseline skipped: a frozen probe takes more than a tenth of the run's time")
        return None
    features, targets = known["features"].numpy(), _targets(run, train)[fitted]
    if targets.any(axis=0).sum() < 2:
        return None
    outputs = _outputs(logistic_on_features(features, targets)(answered["features"].numpy()))
    tune = _cross_fitted(logistic_on_features, features, targets, train.take(fitted)) if run.multi_label else None
    sentence = "logistic regression on the pretrained model's frozen features"
    return scored(run, "frozen probe", sentence, outputs, rows, tune).fitted_to(len(fitted), len(train))


def last_linear(model: nn.Module, num_labels: int) -> nn.Module:
    """Return the linear layer that computes the logits. Raises RecipeError if there is none."""
    found = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == num_labels]
    if not found:
        raise RecipeError(f"eval.baseline: {type(model).__name__} has no linear head to probe; use auto")
    return found[-1]


class _Features:
    """Replaces a task in `predict`: its outputs are the inputs of the head, [rows, features]."""

    def __init__(self, task: Task[Any], head: nn.Module) -> None:
        self.task, self.head = task, head
        self.collate = task.collate

    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        kept: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0].float()))
        try:
            self.task.predict_batch(model, batch)
        finally:
            handle.remove()
        if kept[-1].ndim != 2:
            raise RecipeError(
                f"eval.baseline: the head of {type(model).__name__} does not take one vector per row; use auto"
            )
        return {"features": kept[-1]}


def _targets(run: Run, examples: Examples) -> np.ndarray:
    """Return the labels as 0 or 1, int64 [rows, labels]."""
    counts = run.task.scorer.label_counts(examples.references) or {}
    targets = np.zeros((len(examples), len(counts)), dtype=np.int64)
    for row, labels in enumerate(examples.references):
        targets[row, labels] = 1
    return targets


def _cross_fitted(
    fit: Fit, features: Any, targets: np.ndarray, examples: Examples
) -> tuple[dict[str, Tensor], Examples]:
    return _outputs(cross_fitted(fit, features, targets)), examples


def _outputs(logits: np.ndarray) -> dict[str, Tensor]:
    return {"logits": torch.from_numpy(logits), "loss": torch.zeros(len(logits))}
