"""Baselines of a run, read from metrics.json for the model card and the report."""

from __future__ import annotations

from dataclasses import dataclass

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.names import without_paths
from sft_hf.publishing.numbers import LOWER_IS_BETTER, NO_BREAK, finite, interval, metric_difference, metric_value

LEVEL = 0.05  # of significance tests


@dataclass(frozen=True)
class Baseline:
    """A baseline, on the split and metric of the headline.

    Attributes:
        name: the kind of baseline.
        description: a description, including the rows it was scored on.
        value, interval: its score; the interval is None if there is none.
        model: the model's score on the same rows.
        difference, difference_interval, p_value: model minus baseline; None in runs of earlier versions.
        metric: the metric of the headline.
        sampled: whether it was scored on a sample of the rows of the headline.
    """

    name: str
    description: str
    value: float
    interval: tuple[float, float] | None
    model: float
    difference: float | None
    difference_interval: tuple[float, float] | None
    p_value: float | None
    metric: str
    sampled: bool

    @property
    def model_is_better(self) -> bool:
        """Whether the model scores better on these rows."""
        return self.model < self.value if self.metric in LOWER_IS_BETTER else self.model > self.value

    @property
    def model_is_worse(self) -> bool:
        """Whether the model scores worse on these rows."""
        return self.model != self.value and not self.model_is_better

    def clear(self, own: tuple[float, float] | None) -> bool | None:
        """Return whether the two differ significantly; None: unknown. `own` is the interval of the model's score."""
        if self.p_value is not None:
            return self.p_value < LEVEL
        if own is None:
            return None
        low, high = self.interval or (self.value, self.value)
        return not (own[0] <= high and low <= own[1])

    def by_how_much(self) -> str:
        """Return the difference in words; empty if it was not measured row by row."""
        if self.difference is None:
            return ""
        text = f" by {metric_difference(self.metric, abs(self.difference))} on the same rows"
        if self.difference_interval is None:
            return text
        ends = sorted(end if self.difference > 0 else -end for end in self.difference_interval)
        low, high = (metric_difference(self.metric, end, unit=False) for end in ends)
        return f"{text} (95{NO_BREAK}% interval {low} to {high})"


def baselines(record: RunRecord) -> list[Baseline]:
    """Return all baselines that can be compared with the headline."""
    listed = record.metrics.get("baselines") or [record.metrics.get("baseline")]
    found = []
    for entry in listed:
        if not isinstance(entry, dict) or entry.get("split", record.split) != record.split:
            continue
        scores, name = entry.get("metrics") or {}, str(entry.get("name") or "baseline")
        value, ours = finite(scores.get(record.primary)), finite(record.scores.get(record.primary))
        if value is None or ours is None:
            continue
        told = entry.get("difference") or {}
        own = finite((entry.get("model") or {}).get(record.primary))
        rows = entry.get("num_examples")
        found.append(
            Baseline(
                name=name,
                description=without_paths(str(entry.get("description") or name)),
                value=value,
                interval=interval(scores, record.primary),
                model=ours if own is None else own,
                difference=finite(told.get("value")),
                difference_interval=interval({"value_ci95": told.get("ci95")}, "value"),
                p_value=finite(told.get("p_value")),
                metric=record.primary,
                sampled=rows is not None and rows != record.scores.get("num_examples"),
            )
        )
    return found


def worse_than(record: RunRecord) -> list[str]:
    """Return a sentence for each baseline that scores better than the model."""
    sentences = []
    for base in baselines(record):
        if base.model_is_worse:
            ours, theirs = (metric_value(base.metric, value) for value in (base.model, base.value))
            surely = "" if base.clear(interval(record.scores, base.metric)) else ", which may be chance"
            sentences.append(f"Worse than {base.description}{base.by_how_much()}: {ours} against {theirs}{surely}.")
    return sentences


def compared(base: Baseline, own: tuple[float, float] | None) -> str:
    """Return a baseline's score, and whether the model is better; `own` is the interval of the model's score."""
    value = metric_value(base.metric, base.value)
    text = f"For comparison, {base.description}: {value}"
    if base.sampled:
        text += f" (the model, on the same rows: {metric_value(base.metric, base.model)})"
    clear = base.clear(own)
    if clear is None:
        return f"{text}."
    how = "better" if base.model_is_better else "worse" if base.model_is_worse else "different"
    if clear:
        return f"{text}. The model is clearly {how}{base.by_how_much()}."
    why = "The intervals overlap" if base.p_value is None else "The difference on these rows may be chance"
    return f"{text}. {why}: the model is not clearly {how}{base.by_how_much()}."
