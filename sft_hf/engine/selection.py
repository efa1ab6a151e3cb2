"""Choose the weights of the best evaluation, and warn when validation is too small to choose by."""

from __future__ import annotations

import math

from sft_hf.data.findings import Finding
from sft_hf.engine.state import TrainState

FEW_ROWS = 200  # with fewer validation rows, a run reports the uncertainty of its metric


def choose(state: TrainState, value: float | None, loss: float, *, lower: bool) -> bool:
    """Record an evaluation in the state, and return whether its weights are the best so far.

    A better metric wins; with equal metrics the lower loss, and with equal losses the later evaluation, which has been
    trained for longer. Only a better metric resets patience: the loss may keep falling slightly without end.

    Args:
        state: of the run; its best_metric, best_loss, best_step and evaluations_without_improvement are set.
        value: the metric; None or NaN (undefined) is worse than any number.
        loss: validation loss.
        lower: whether a lower value is better.
    """
    best = state.best_metric
    better = state.best_step is None or _is_better(value, best, lower)
    state.evaluations_without_improvement = 0 if better else state.evaluations_without_improvement + 1
    tied = not better and not _is_better(best, value, lower)
    # Checkpoints of earlier versions have no loss: prefer the later step.
    if better or (tied and (state.best_loss is None or not loss > state.best_loss)):
        state.best_metric, state.best_loss, state.best_step = value, loss, state.step
        return True
    return False


def _is_better(value: float | None, other: float | None, lower: bool) -> bool:
    if value is None or math.isnan(value):
        return False
    if other is None or math.isnan(other):
        return True
    return value < other if lower else value > other


def small_validation(rows: int, metric: str = "accuracy") -> list[Finding]:
    """Return a note on the uncertainty of the metric if validation has few rows; otherwise nothing.

    The standard error of a fraction p of n rows is sqrt(p (1 - p) / n); the sentence assumes p = 0.9. For metrics other
    than accuracy it cannot be estimated without the predictions.
    """
    if not 0 < rows < FEW_ROWS:
        return []
    if metric != "accuracy":
        text = (
            f"the choice between evaluations rests on only {rows} validation rows; small differences in {metric}, also "
            "between settings, may be noise"
        )
        return [Finding("note", text)]
    noise = 196 * math.sqrt(0.9 * 0.1 / rows)
    return [
        Finding(
            "note",
            f"validation has {rows} rows: one row is {100 / rows:.1f} points, and a score of 90 % is uncertain by "
            f"{noise:.0f} points either way (95 %); smaller differences between evaluations, or between settings, are "
            "noise",
        )
    ]
