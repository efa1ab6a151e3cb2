"""Formatting of numbers: percentages, durations, names of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

NO_BREAK = "\u00a0"
UNKNOWN = "\u2013"

LOWER_IS_BETTER = frozenset(
    {"loss", "wer", "cer", "wer_normalized", "cer_normalized", "substitutions", "deletions", "insertions", "ece"}
    | {"rmse", "mse", "mae", "standardized_rmse"}
)
REGRESSION = ("rmse", "mse", "mae", "standardized_rmse", "r2", "pearson", "spearman")

_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "micro_f1": "Micro-F1",
    "map": "Mean average precision",
    "subset_accuracy": "Rows with all labels right",
    "threshold": "Decision threshold",
    "wer": "Word error rate",
    "cer": "Character error rate",
    "wer_normalized": "Word error rate, normalized",
    "cer_normalized": "Character error rate, normalized",
    "exact_match": "Transcripts without an error",
    "substitutions": "Words substituted",
    "deletions": "Words left out",
    "insertions": "Words added",
    "loss": "Loss",
    "ece": "Expected calibration error",
    "rmse": "RMSE",
    "mse": "MSE",
    "mae": "MAE",
    "standardized_rmse": "Standardized RMSE",
    "r2": "R\u00b2",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
_PROPER = ("rmse", "mse", "mae", "r2", "pearson", "spearman")  # same spelling at the start of a sentence and inside
_NOT_PERCENT = ("loss", "threshold", *REGRESSION)


def metric_name(metric: str) -> str:
    """Return a metric's name in words; unknown names are unchanged.

    >>> metric_name("wer")
    'Word error rate'
    """
    return _NAMES.get(metric, metric.replace("_", " ").capitalize())


def metric_mention(metric: str) -> str:
    """Return a metric's name for use inside a sentence.

    >>> metric_mention("micro_f1")
    'micro-F1'
    """
    name = metric_name(metric)
    return name if metric in _PROPER else name[:1].lower() + name[1:]


def finite(value: Any) -> float | None:
    """Return a number as a float; None for anything else: None, NaN, infinity, text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(scores: dict[str, Any], metric: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric, None if there is none.

    An interval of zero width is None: rows that all score the same (two clips without an error) show no variation.
    """
    pair = scores.get(f"{metric}_ci95")
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return None
    low, high = finite(pair[0]), finite(pair[1])
    return None if low is None or high is None or low == high else (low, high)


def percent(value: Any) -> str:
    """Return a fraction as a percentage: one decimal, or more if rounding would give 0 or 100.

    >>> percent(0.9735).replace(NO_BREAK, " ")
    '97.4 %'
    >>> percent(0.99996).replace(NO_BREAK, " ")
    '99.996 %'
    """
    number = finite(value)
    if number is None:
        return UNKNOWN
    for digits in (1, 2, 3, 4):
        text = f"{number * 100:.{digits}f}"
        if number in (0.0, 1.0) or float(text) not in (0.0, 100.0):
            break
    return f"{text}{NO_BREAK}%"


def axis_percent(value: float) -> str:
    """Return a fraction as an axis label.

    >>> axis_percent(0.25).replace(NO_BREAK, " ")
    '25 %'
    """
    return f"{value * 100:.6g}{NO_BREAK}%"


def percent_range(pair: tuple[float, float] | None) -> str:
    """Return an interval of fractions: `96.7 % to 98.0 %`."""
    return UNKNOWN if pair is None else f"{percent(pair[0])} to {percent(pair[1])}"


def metric_value(metric: str, value: Any) -> str:
    """Return the formatted value of a metric: a percentage, or the plain number of a loss."""
    return decimal(value) if metric in _NOT_PERCENT else percent(value)


def metric_range(metric: str, pair: tuple[float, float] | None) -> str:
    """Return the formatted interval of a metric."""
    return UNKNOWN if pair is None else f"{metric_value(metric, pair[0])} to {metric_value(metric, pair[1])}"


def metric_axis(metric: str) -> Callable[[float], str]:
    """Return the function that formats the values of a metric on an axis."""
    return decimal if metric in _NOT_PERCENT else axis_percent


def metric_difference(metric: str, value: float, *, unit: bool = True) -> str:
    """Return a difference of two values of a metric: percentage points, or the plain number.

    >>> metric_difference("accuracy", 0.0421), metric_difference("loss", 0.0421)
    ('4.2 points', '0.0421')
    """
    if metric in _NOT_PERCENT:
        return decimal(value)
    digits = 1 if abs(value) >= 0.001 or value == 0 else 2
    return f"{value * 100:.{digits}f}" + (" points" if unit else "")


def count(value: Any) -> str:
    """Return an integer with thousands separators.

    >>> count(22716296)
    '22,716,296'
    """
    number = finite(value)
    return UNKNOWN if number is None else f"{round(number):,}"


def decimal(value: Any, digits: int = 4) -> str:
    """Return a number with `digits` significant digits; large numbers as integers, tiny ones in scientific notation.

    >>> decimal(1.96557), decimal(0.0001499), decimal(120.0), decimal(2e-5), decimal(6830.4, 3)
    ('1.966', '0.0001499', '120', '2e-05', '6,830')
    """
    number = finite(value)
    if number is None:
        return UNKNOWN
    return count(number) if abs(number) >= min(10_000, 10**digits) else f"{number:.{digits}g}"


def rows(number: Any, noun: str = "row") -> str:
    """Return a count with its noun: `1 row`, `2,189 rows`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def duration(seconds: Any) -> str:
    """Return a duration in words.

    >>> duration(330)
    '5 min 30 s'
    """
    number = finite(seconds)
    if number is None:
        return UNKNOWN
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
