"""The comparison of several runs: ranking, significance, and differences between recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from sft_hf.core.errors import UserError
from sft_hf.core.filesystem import human_bytes
from sft_hf.core.recipe.yaml_files import flatten
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.names import source_name
from sft_hf.publishing.numbers import (
    LOWER_IS_BETTER,
    REGRESSION,
    UNKNOWN,
    count,
    decimal,
    duration,
    finite,
    interval,
    metric_axis,
    metric_difference,
    metric_mention,
    metric_name,
    metric_range,
    metric_value,
    rows,
)
from sft_hf.publishing.public_recipe import public_recipe
from sft_hf.publishing.report.charts import Line, Strip, interval_strips, line_panel, ticks
from sft_hf.publishing.report.pages import render, wording
from sft_hf.publishing.report.paired_runs import Compared, against_best
from sft_hf.publishing.report.sections import curve

MOST_CURVES = 12
LINE_STYLES = 6  # colours of lines; further lines are dashed


@dataclass(frozen=True)
class _Run:
    """A run with its number on the page, 1 for the best."""

    number: int
    record: RunRecord
    value: float | None
    interval: tuple[float, float] | None
    compared: Compared | None
    """Comparison with the best run; None for the best run."""

    @property
    def name(self) -> str:
        return f"{self.number}. {wording(self.record.name, 60)}"

    @property
    def mention(self) -> str:
        return f"{wording(self.record.name, 60)} ({self.number})"


def build_comparison(records: Sequence[RunRecord]) -> str:
    """Return a page that compares runs, best first, as HTML.

    Raises UserError for fewer than two runs, or runs with different tasks or primary metrics.
    """
    _refuse_different(records)
    metric = records[0].primary
    runs = _ranked(records, metric)
    return render(
        "comparison.html",
        metric=metric_name(metric),
        mention=metric_mention(metric),
        lower=metric in LOWER_IS_BETTER,
        task=str(records[0].metrics["task"]).replace("_", " ").capitalize(),
        verdict=verdict(runs),
        cautions=_cautions(runs),
        chart=_chart(runs, metric),
        method=_method(runs),
        runs=[_scores(run, metric) for run in runs],
        panels=_curves(runs, metric),
        num_curves=min(len(runs), MOST_CURVES),
        differences=differences(runs),
        costs=[_costs(run) for run in runs],
        names=[run.name for run in runs],
    )


def _refuse_different(records: Sequence[RunRecord]) -> None:
    if len(records) < 2:
        raise UserError("a comparison needs two runs or more; name their folders")
    first = records[0]
    for other in records[1:]:
        for key in ("task", "primary_metric"):
            mine, its = first.metrics.get(key), other.metrics.get(key)
            if mine != its:
                raise UserError(
                    f"{other.name}: its {key.replace('_', ' ')} is {its}, and that of {first.name} is {mine}; "
                    "compare runs of one task and one metric"
                )


def _ranked(records: Sequence[RunRecord], metric: str) -> list[_Run]:
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    scored = [(finite(record.scores.get(metric)), record) for record in records]
    scored.sort(key=lambda pair: float("inf") if pair[0] is None else sign * pair[0])
    compared = [None, *against_best(scored[0][1], [record for _, record in scored[1:]])]
    return [
        _Run(number, record, value, interval(record.scores, metric), found)
        for number, ((value, record), found) in enumerate(zip(scored, compared, strict=True), start=1)
    ]


def verdict(runs: Sequence[_Run]) -> str:
    """Return which run is best, if any: only tests on the same rows can show a winner."""
    scored = [run for run in runs if run.value is not None]
    if len(scored) < 2:
        return "Fewer than two of the runs have a score: there is nothing to rank."
    best, others = scored[0], scored[1:]
    tested = [run for run in others if run.compared and run.compared.difference]
    left = [run for run in others if run not in tested]
    if not tested:
        why = "the runs were not scored on the same rows"
        if all(run.compared and run.compared.reason.startswith("no paired") for run in left):
            why = "there is no paired test of this metric"
        return f"{best.mention} has the best score; {why}, so it is not known whether this is more than chance."
    close = [run for run in tested if run.compared and not run.compared.is_behind]
    behind = [run for run in tested if run not in close]
    if close:
        sentence = (
            f"No clear winner: {best.mention} scores best, but does not differ significantly from {_listed(close)}."
        )
        sentence += f" Clearly behind: {_listed(behind)}." if behind else ""
    else:
        of_what = "every other" if behind[1:] and not left else _listed(behind)
        sentence = f"{best.mention} is clearly best: better than {of_what} on the same rows."
    return sentence + (f" Not compared: {_listed(left)}, scored on other rows." if left else "")


def _method(runs: Sequence[_Run]) -> str:
    """Return the test used, its number of rows and the correction for multiple tests; empty without tests."""
    found = [run.compared.difference for run in runs if run.compared and run.compared.difference]
    if not found:
        return ""
    several = f", with p values corrected for {len(found)} comparisons by Holm's method" if found[1:] else ""
    return f"Runs are compared with the best one by {found[0].test} on the same {rows(found[0].rows)}{several}."


def _listed(runs: Sequence[_Run], most: int = 4) -> str:
    if len(runs) > most:
        return f"{len(runs)} other runs"
    names = [run.mention for run in runs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _leads(run: _Run) -> bool:
    """Whether a run is the best or not significantly different from it."""
    return run.compared is None or (run.compared.difference is not None and not run.compared.is_behind)


def _against(run: _Run) -> str:
    """Return the difference to the best run for a cell."""
    found = run.compared
    if found is None or found.difference is None:
        return "the best" if found is None else found.reason
    metric, told = run.record.primary, found.difference
    ends = (metric_difference(metric, end, unit=False) for end in told.interval)
    value = metric_difference(metric, told.value)
    return f"{'+' if told.value > 0 else ''}{value} ({' to '.join(ends)}), {_p_value(found.p_value)}"


def _p_value(value: float | None) -> str:
    return f"p = {value:.2g}" if value is not None and value >= 0.001 else "p < 0.001"


def _cautions(runs: Sequence[_Run]) -> list[str]:
    found = []
    data = {(run.record.recipe.data.name, run.record.recipe.data.revision) for run in runs}
    if len(data) > 1:
        names = ", ".join(sorted({source_name(name) for name, _ in data}))
        found.append(f"The runs were made with different data ({names}): their scores measure different things.")
    splits = {run.record.split for run in runs if run.record.scores}
    if len(splits) > 1:
        found.append("Some runs are scored on test and some on validation, on which choices were made.")
    elif len(data) == 1 and len({run.record.scores.get("num_examples") for run in runs if run.record.scores}) > 1:
        found.append("The runs were scored on different numbers of rows.")
    return found


def _chart(runs: Sequence[_Run], metric: str) -> Markup | None:
    strips = [
        Strip(run.name, run.value, run.interval, "own" if _leads(run) else "other")
        for run in runs
        if run.value is not None
    ]
    if not strips:
        return None
    told = "; ".join(f"{strip.label}: {metric_value(metric, strip.value)}" for strip in strips)
    title = f"{metric_name(metric)} of each run, with 95 % intervals"
    form, axis = partial(metric_value, metric), metric_axis(metric)
    scale = _close_scale(strips, lowest=-math.inf if metric in REGRESSION else 0.0)
    return interval_strips(title, f"Best first. {told}.", strips, scale, form=form, axis=axis)


def _close_scale(strips: Sequence[Strip], lowest: float) -> tuple[float, float]:
    """Return a scale on which small differences are visible: round numbers below and above all ends."""
    ends = [end for strip in strips for end in (strip.value, *(strip.interval or ()))]
    low, high = min(ends), max(ends)
    if high <= low:
        low, high = low - 0.01, high + 0.01
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return max(lowest, step * (low // step)), step * -(-high // step)


def _scores(run: _Run, metric: str) -> dict[str, Any]:
    record = run.record
    return {
        "name": run.name,
        "leads": run.value is not None and _leads(run),
        "against": _against(run),
        "checkpoint": source_name(record.recipe.model.name),
        "split": record.split if record.scores else UNKNOWN,
        "rows": count(record.scores.get("num_examples")),
        "value": metric_value(metric, run.value),
        "interval": metric_range(metric, run.interval),
    }


def _curves(runs: Sequence[_Run], metric: str) -> list[tuple[str, Markup]]:
    """Return the validation metric and loss of the best runs, over the same steps."""
    drawn = runs[:MOST_CURVES]
    steps = [finite(line.get("step")) or 0.0 for run in drawn for line in run.record.log if "eval_loss" in line]
    form = metric_axis(metric)
    panels = []
    for key, title, axis in (
        (f"eval_{metric}", f"{metric_name(metric)} on validation", form),
        ("eval_loss", "Loss on validation", decimal),
    ):
        lines = [
            Line(f"{run.number} {wording(run.record.name, 11)}", curve(run.record.log, key), _style(run.number), True)
            for run in drawn
        ]
        told = f"{title} over the steps of training, one line per run. The table above has the final scores."
        range_ = (0.0, max([*steps, 1.0]))
        height = max(210, 60 + 14 * len(drawn))
        if panel := line_panel(title, told, lines, range_, from_zero=False, y_format=axis, height=height, right=108):
            panels.append((title, panel))
    return panels


def _style(number: int) -> str:
    index = (number - 1) % LINE_STYLES + 1
    return f"l{index} dashed" if number > LINE_STYLES else f"l{index}"


def differences(runs: Sequence[_Run]) -> list[tuple[str, list[str]]]:
    """Return the recipe's keys whose values differ, with the value of each run."""
    recipes = [flatten(public_recipe(run.record.recipe)) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [
        (key, [_plain(recipe[key]) if key in recipe else UNKNOWN for recipe in recipes])
        for key in keys
        if any(recipe.get(key) != recipes[0].get(key) or (key in recipe) != (key in recipes[0]) for recipe in recipes)
    ]


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _costs(run: _Run) -> list[str]:
    train, model = run.record.metrics.get("train") or {}, run.record.metrics.get("model") or {}
    memory = finite(train.get("peak_memory_bytes"))
    return [
        count(train.get("num_steps")),
        duration(train.get("runtime_seconds")),
        decimal(train.get("examples_per_second"), 3),
        UNKNOWN if memory is None else human_bytes(memory),
        count(model.get("num_parameters")),
        count(model.get("num_trainable_parameters")),
    ]
