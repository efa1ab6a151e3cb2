"""Baselines of a run, from metrics.json, and whether the model is better: for the log, the card and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.names import without_paths
from sft_hf.publishing.numbers import LOWER_IS_BETTER, NO_BREAK, finite, interval, metric_difference, metric_value

LEVEL = 0.05  # of significance tests
CLEARLY_WORSE, NOT_CLEAR, CLEARLY_BETTER = "clearly worse", "not clearly different", "clearly better"


def verdict(metric: str, difference: float, p_value: float) -> str:
    """Return the verdict of a paired test: `CLEARLY_WORSE`, `NOT_CLEAR` or `CLEARLY_BETTER`.

    Args:
        metric: the metric that is compared.
        difference: the model's value minus the baseline's.
        p_value: of the test.

    >>> verdict("accuracy", -0.125, 0.69), verdict("wer", -0.1, 0.001)
    ('not clearly different', 'clearly better')
    """
    if p_value >= LEVEL or not difference:
        return NOT_CLEAR
    return CLEARLY_WORSE if (difference > 0) == (metric in LOWER_IS_BETTER) else CLEARLY_BETTER


@dataclass(frozen=True)
class Baseline:
    """A baseline, on the split and metric of the headline.

    Attributes:
        name: the kind of baseline.
        description: a description, including the rows it was scored on.
        value, interval: its score; the interval is None if there is none.
        model: the model's score on the same rows.
        difference, difference_interval, p_value, test: model minus baseline; None in runs of earlier versions.
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
    test: str | None
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

    def verdict(self, own: tuple[float, float] | None) -> str | None:
        """Return the verdict of the paired test; without one, of whether the intervals overlap; None: unknown.

        `own` is the interval of the model's score.
        """
        if self.p_value is not None:
            return verdict(self.metric, self.model - self.value, self.p_value)
        if own is None:
            return None
        low, high = self.interval or (self.value, self.value)
        overlap = own[0] <= high and low <= own[1]
        return verdict(self.metric, self.model - self.value, 1.0 if overlap else 0.0)

    def evidence(self, own: tuple[float, float] | None) -> str:
        """Return the difference in words, and whether it may be chance; empty if nothing is to be added."""
        chance = self.verdict(own) == NOT_CLEAR
        if self.difference is None:
            return "the intervals overlap" if chance else ""
        if not self.difference:
            return "the same score on the same rows"
        how = "better" if self.model_is_better else "worse"
        text = f"{metric_difference(self.metric, abs(self.difference))} {how} on the same rows"
        text += ", which may be chance" if chance else ""
        details = [f"p = {self.p_value:.2g}{f', {self.test}' if self.test else ''}"] if self.p_value is not None else []
        if self.difference_interval is not None:
            ends = sorted(end if self.difference > 0 else -end for end in self.difference_interval)
            low, high = (metric_difference(self.metric, end, unit=False) for end in ends)
            details.insert(0, f"95{NO_BREAK}% interval {low} to {high}")
        return text + (f" ({'; '.join(details)})" if details else "")

    def if_worse(self, own: tuple[float, float] | None) -> str | None:
        """Return a sentence if the baseline scores better than the model; else None."""
        if not self.model_is_worse:
            return None
        ours, theirs = (metric_value(self.metric, value) for value in (self.model, self.value))
        word = "clearly worse than" if self.verdict(own) == CLEARLY_WORSE else "not clearly different from"
        why = ", ".join(filter(None, (f"{ours} against {theirs}", self.evidence(own))))
        return f"The model is {word} {self.description}: {why}."


def baselines(record: RunRecord) -> list[Baseline]:
    """Return all baselines that can be compared with the headline."""
    listed = record.metrics.get("baselines") or [record.metrics.get("baseline")]
    found = []
    for entry in listed:
        if isinstance(entry, dict) and entry.get("split", record.split) == record.split:
            found.append(read_baseline(entry, record.primary, record.scores))
    return [base for base in found if base is not None]


def read_baseline(entry: dict[str, Any], metric: str, scores: dict[str, Any]) -> Baseline | None:
    """Return a baseline from its entry in metrics.json; None if it or the model has no value of the metric.

    `scores` are the model's on the whole split.
    """
    theirs, name = entry.get("metrics") or {}, str(entry.get("name") or "baseline")
    told = entry.get("difference") or {}
    own = finite((entry.get("model") or {}).get(metric))
    own = finite(scores.get(metric)) if own is None else own
    value, number = finite(theirs.get(metric)), entry.get("num_examples")
    if value is None or own is None:
        return None
    return Baseline(
        name=name,
        description=without_paths(str(entry.get("description") or name)),
        value=value,
        interval=interval(theirs, metric),
        model=own,
        difference=finite(told.get("value")),
        difference_interval=interval({"value_ci95": told.get("ci95")}, "value"),
        p_value=finite(told.get("p_value")),
        test=told.get("test"),
        metric=metric,
        sampled=number is not None and number != scores.get("num_examples"),
    )


def worse_than(record: RunRecord) -> list[str]:
    """Return a sentence for each baseline that scores better than the model."""
    own = interval(record.scores, record.primary)
    return [text for base in baselines(record) if (text := base.if_worse(own)) is not None]


def compared(base: Baseline, own: tuple[float, float] | None) -> str:
    """Return a baseline's score, and the verdict; `own` is the interval of the model's score."""
    value = metric_value(base.metric, base.value)
    text = f"For comparison, {base.description}: {value}"
    if base.sampled:
        text += f" (the model, on the same rows: {metric_value(base.metric, base.model)})"
    found = base.verdict(own)
    if found is None:
        return f"{text}."
    return f"{text}. The model is {': '.join(filter(None, (found, base.evidence(own))))}."
