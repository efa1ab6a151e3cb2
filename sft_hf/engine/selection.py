"""Which evaluation's weights a run keeps, and how little that choice rests on where validation is small."""

from __future__ import annotations

import math

from sft_hf.data.findings import Finding
from sft_hf.engine.state import TrainState

FEW_ROWS = 200  # of validation, below which a run says how far its metric is off by chance


def choose(state: TrainState, value: float | None, loss: float, *, lower: bool) -> bool:
    """Record an evaluation in the state, and return whether its weights are the best so far.

    A better metric wins; of equal ones that with the lower loss, and of equal losses the later one, which has trained
    for longer. Patience counts a better metric alone: a loss may go on falling, a little, for ever.

    Args:
        state: of the run; its best_metric, best_loss, best_step and evaluations_without_improvement are set.
        value: the metric; None or NaN, which is undefined, is worse than any number.
        loss: on validation.
        lower: whether a lower value is better.
    """
    best = state.best_metric
    better = state.best_step is None or _is_better(value, best, lower)
    state.evaluations_without_improvement = 0 if better else state.evaluations_without_improvement + 1
    tied = not better and not _is_better(best, value, lower)
    # A checkpoint of an earlier version did not record the loss: the later step, then.
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
    """Return what to know about choosing by so few rows; nothing where they suffice.

    The standard error of a fraction p of n rows is sqrt(p (1 - p) / n); the sentence takes p = 0.9. Of metrics other
    than accuracy, nothing is known without the predictions.
    """
    if not 0 < rows < FEW_ROWS:
        return []
    if metric != "accuracy":
        text = (
            f"with {rows} validation rows, a few decide the {metric}, so small differences between evaluations, "
            "or between settings, may be noise"
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
