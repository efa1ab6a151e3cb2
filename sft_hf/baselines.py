"""What a score is compared with: the answer that needs no model, the checkpoint as it came, or a probe of its features.

A baseline is scored on the split of the headline, like the model, and no choice is made on it.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from sft_hf.bootstrap import CONFIDENCE_SAMPLES
from sft_hf.errors import RecipeError
from sft_hf.evaluation import batch_sizes, predict
from sft_hf.recipe import Recipe
from sft_hf.sources import Source
from sft_hf.tasks.base import Batch, Examples, Task

log = logging.getLogger("sft_hf")


def baseline_metrics(
    recipe: Recipe,
    task: Task[Any],
    source: Source,
    accelerator: Accelerator,
    *,
    train: Examples | None,
    split: str,
    examples: Examples,
) -> dict[str, Any] | None:
    """Return `baseline` of metrics.json: its name, a sentence, and the primary metric with its interval.

    `eval.baseline` chooses: auto takes the most frequent label where there are labels, and else the checkpoint before
    training where that can do the task; probe trains a logistic regression on frozen features; none does nothing.

    Args:
        train: the training rows; None for a stream.
        split: the role that is scored, with its `examples`.

    Raises RecipeError for a probe of a task without labels.
    """
    kind = recipe.eval.baseline
    if kind == "none":
        return None
    if kind == "probe":
        name, (sentence, metrics) = "frozen probe", _probe(recipe, task, source, accelerator, train, examples)
    elif train is not None and (
        answer := task.constant_answer(train.references, examples.references, CONFIDENCE_SAMPLES)
    ):
        name, (sentence, metrics) = task.constant_name, answer
    elif task.answers_untrained():
        name, (sentence, metrics) = "zero-shot", _zero_shot(recipe, task, source, accelerator, examples)
    else:
        return None
    primary = task.primary_metric
    log.info("baseline, %s: %s %s %.4f", sentence, split, primary, metrics[primary])
    compared = [key for name in task.compared_metrics() for key in (name, f"{name}_ci95")]
    kept = {key: metrics[key] for key in compared if key in metrics}
    return {"name": name, "description": sentence, "split": split, "metrics": kept}


def _fresh_model(recipe: Recipe, task: Task[Any], source: Source, accelerator: Accelerator) -> nn.Module:
    set_seed(recipe.seed)
    model = task.build_model(source, recipe.model).to(accelerator.device)
    return model.eval()


def _zero_shot(
    recipe: Recipe, task: Task[Any], source: Source, accelerator: Accelerator, examples: Examples
) -> tuple[str, dict[str, Any]]:
    model = _fresh_model(recipe, task, source, accelerator)
    outputs = predict(
        task,
        model,
        examples,
        accelerator,
        **batch_sizes(recipe, task, accelerator, autocast=False),
        description="scoring the untrained checkpoint",
        autocast=False,
    )
    return "the checkpoint before training", task.score(outputs, examples, CONFIDENCE_SAMPLES)


# --- the probe ---------------------------------------------------------------------------------------------------


def _probe(
    recipe: Recipe,
    task: Task[Any],
    source: Source,
    accelerator: Accelerator,
    train: Examples | None,
    examples: Examples,
) -> tuple[str, dict[str, Any]]:
    """Logistic regression on what the untrained checkpoint hands to its head (G. Alain and Y. Bengio, 2016)."""
    # Most of a second, which only who asks for a probe need wait for.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train is None:
        raise RecipeError("eval.baseline: a probe needs all training rows, and data.streaming reads them as they come")
    labels = task.label_counts(train.references)
    if labels is None or getattr(task, "multi_label", False):
        raise RecipeError(
            f"eval.baseline: a probe needs one label per row, which {recipe.task.name} has not here; take auto"
        )
    model = _fresh_model(recipe, task, source, accelerator)
    wrapped = _Features(task, last_linear(model, len(labels)))
    options = {**batch_sizes(recipe, task, accelerator, autocast=False), "autocast": False}
    features = [
        predict(cast(Any, wrapped), model, rows, accelerator, description=f"probing {name} rows", **options)["features"]
        for name, rows in (("training", train), ("scored", examples))
    ]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(features[0].numpy(), np.asarray(train.references))
    scores = np.full((len(examples), len(labels)), UNSEEN, dtype=np.float32)
    scores[:, classifier.classes_] = classifier.predict_log_proba(features[1].numpy())
    outputs = {"logits": torch.from_numpy(scores), "loss": torch.zeros(len(examples))}
    return "logistic regression on the frozen checkpoint's features", task.score(outputs, examples, CONFIDENCE_SAMPLES)


def last_linear(model: nn.Module, num_labels: int) -> nn.Module:
    """Return the layer that makes the logits. Raises RecipeError where there is none that is linear."""
    found = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == num_labels]
    if not found:
        raise RecipeError(f"eval.baseline: {type(model).__name__} has no linear head to probe; take auto")
    return found[-1]


UNSEEN = -1e4  # the logit of a label that no training row has


class _Features:
    """Stands in for a task in `predict`: its outputs are what the head is given, [rows, features]."""

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
            raise RecipeError(f"eval.baseline: the head of {type(model).__name__} sees no single vector; take auto")
        return {"features": kept[-1]}
