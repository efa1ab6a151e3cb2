"""The headline of a report: score, interval and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from markupsafe import Markup

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.baselines import Baseline, baselines, compared, worse_than
from sft_hf.publishing.names import without_paths
from sft_hf.publishing.numbers import (
    LOWER_IS_BETTER,
    NO_BREAK,
    REGRESSION,
    finite,
    interval,
    metric_axis,
    metric_mention,
    metric_name,
    metric_range,
    metric_value,
    percent,
    rows,
)
from sft_hf.publishing.report.charts import Strip, interval_strips, ticks
from sft_hf.publishing.report.pages import wording

FEW_ROWS = 100  # with fewer rows, a score is unreliable


@dataclass(frozen=True)
class Headline:
    """`value` and `label` are large, `sentence` explains them, `verdicts` compare; `chart` shows all of it."""

    value: str
    label: str
    sentence: str
    verdicts: list[str]
    chart: Markup | None
    warnings: list[str]


def headline(record: RunRecord) -> Headline:
    """Return the headline of a run, from the scores it has."""
    warnings = _warnings(record)
    metric, scores = record.primary, record.scores
    value = finite(scores.get(metric))
    if value is None:
        loss = metric_value("loss", record.metrics.get("train", {}).get("final_loss"))
        sentence = f"The run has no {metric_mention(metric)} on validation or test data; its quality is not known."
        return Headline(loss, "last training loss", sentence, [], None, warnings)
    found, own = baselines(record), interval(scores, metric)
    label = f"{metric_mention(metric)} on {record.split}"
    if metric in LOWER_IS_BETTER:
        label += " (lower is better)"
    verdicts = [compared(replace(base, description=wording(base.description, 200)), own) for base in found]
    chart = _chart(record, value, own, found)
    return Headline(metric_value(metric, value), label, _sentence(record, value, own), verdicts, chart, warnings)


def _sentence(record: RunRecord, value: float, own: tuple[float, float] | None) -> str:
    metric, scores, split = record.primary, record.scores, record.split
    number = scores.get("num_examples")
    if metric == "accuracy":
        fact = f"{percent(value)} of {rows(number, f'{split} row')} {'is' if number == 1 else 'are'} right"
    elif metric in ("wer", "wer_normalized"):
        words = f" with {rows(scores['num_words'], 'word')}" if "num_words" in scores else ""
        fact = f"{_per_hundred(value)} word errors per 100 words spoken, in {rows(number, f'{split} recording')}{words}"
    elif metric in ("rmse", "standardized_rmse"):
        unit = " standard deviations" if metric == "standardized_rmse" else ""
        off = f"{metric_value(metric, value)}{unit} (root mean square)"
        fact = f"Predictions are off by {off} on {rows(number, f'{split} row')}"
    else:
        meaning = " (all decisions on all labels pooled)" if metric == "micro_f1" else ""
        fact = f"{metric_name(metric)}{meaning} is {metric_value(metric, value)} on {rows(number, f'{split} row')}"
    if own is None:
        return f"{fact}."
    low, high = (metric_value(metric, end) for end in own)
    return f"{fact}; for new data of the same kind, expect between {low} and {high} (95{NO_BREAK}% interval)."


def _per_hundred(value: float) -> str:
    return percent(value)[:-2]


def _chart(record: RunRecord, value: float, own: tuple[float, float] | None, found: Sequence[Baseline]) -> Markup:
    metric = record.primary
    strips = [Strip("This model", value, own)]
    strips += [Strip(_name(base.name), base.value, base.interval, "other") for base in found]
    told = [
        f"{strip.label}: {metric_value(metric, strip.value)}"
        + (f", 95 % interval {metric_range(metric, strip.interval)}" if strip.interval else "")
        for strip in strips
    ]
    direction = "Lower is better." if metric in LOWER_IS_BETTER else "Higher is better."
    title = f"{metric_name(metric)} on {record.split}, with 95 % intervals"
    form, axis = partial(metric_value, metric), metric_axis(metric)
    scale = number_scale(strips) if metric in REGRESSION else scale_from_zero(strips)
    return interval_strips(title, f"{direction} {'; '.join(told)}.", strips, scale, form=form, axis=axis)


def _name(name: str) -> str:
    return {
        "majority class": "Most frequent label",
        "zero-shot": "Before fine-tuning",
        "frozen probe": "Frozen features",
        "mean of train": "Mean of train",
        "tf-idf": "Words (TF-IDF)",
    }.get(name, name)


def scale_from_zero(strips: Sequence[Strip]) -> tuple[float, float]:
    """Return a scale that contains all strips: 0 to 1, or to a round number above for rates that exceed it."""
    highest = max(end for strip in strips for end in (strip.value, *(strip.interval or ())))
    if highest <= 1.0:
        return 0.0, 1.0
    step = ticks(0.0, highest)[1]
    return 0.0, step * -(-highest // step)


def number_scale(strips: Sequence[Strip]) -> tuple[float, float]:
    """Return a scale of plain numbers that contains all strips and 0, with round ends."""
    ends = [0.0, *(end for strip in strips for end in (strip.value, *(strip.interval or ())))]
    low, high = min(ends), max(ends)
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    return step * (low // step), step * -(-high // step)


# --- warnings ----------------------------------------------------------------------------------------------------


def _findings(record: RunRecord) -> list[str]:
    data = record.metrics.get("data") or {}
    found = [finding["text"] for finding in data.get("findings") or [] if finding.get("level") == "warning"]
    return [without_paths(text) for text in found]


def _warnings(record: RunRecord) -> list[str]:
    found = [*worse_than(record), *_findings(record)]
    number = record.scores.get("num_examples")
    if record.scores and isinstance(number, int) and number < FEW_ROWS:
        sure = interval(record.scores, record.primary)
        off = "the score may be off by as much as its interval is wide" if sure else "too few for a reliable interval"
        found.append(f"{rows(number, f'{record.split} row')} only: {off}.")
    if record.scores and record.split == "validation":
        lack = "The test split has no labels" if record.unlabelled_test else "There is no test split"
        found.append(f"{lack}: the score is on validation rows, on which choices were made, and may be optimistic.")
    if (single := _only_answer(record.predictions)) is not None:
        found.append(f"The model gives the same answer, {wording(single)!r}, for every row.")
    return found


def _only_answer(predictions: list[dict[str, Any]]) -> Any:
    """Return the answer given to all rows, if their references differ; else None."""
    answers = {str(row.get("prediction")) for row in predictions}
    references = {str(row.get("reference")) for row in predictions}
    return predictions[0].get("prediction") if len(answers) == 1 and len(references) > 1 else None
