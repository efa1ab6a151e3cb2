"""report.html: a self-contained page about a run, without scripts and external resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft_hf.core.recipe.yaml_files import write_yaml
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.names import source_name
from sft_hf.publishing.numbers import interval, metric_name, metric_range, metric_value, percent, rows
from sft_hf.publishing.public_recipe import public_recipe
from sft_hf.publishing.regression import is_regression
from sft_hf.publishing.report import curves, mistakes, regression, sections
from sft_hf.publishing.report.charts import small_bar
from sft_hf.publishing.report.headline import headline
from sft_hf.publishing.report.pages import render

if TYPE_CHECKING:
    from sft_hf.tasks.base import Preview

WORST_ERRORS = 12


def worst_errors(record: RunRecord, limit: int = WORST_ERRORS) -> list[int]:
    """Return the ids of the wrong rows, the most confident first; for transcripts, those with a wrong word."""
    return [row["id"] for row in mistakes.worst_rows(record, limit)]


def rows_to_show(record: RunRecord) -> list[int]:
    """Return the ids of all rows whose content a report shows: the worst errors, and a gallery."""
    worst = worst_errors(record)
    gallery = mistakes.gallery_rows(record, set(worst))
    return worst + [row["id"] for rows in gallery.values() for row in rows]


def build_report(record: RunRecord, shown: Mapping[int, Preview], missing: str = "") -> str:
    """Return the report of a run as HTML.

    Args:
        record: the run; with its outputs, for curves.
        shown: previews of the rows of `rows_to_show(record)`, by id; an error without an entry is listed without its
            content.
        missing: a sentence on why contents are missing.
    """
    worst = mistakes.worst_rows(record, WORST_ERRORS)
    return render(
        "report.html",
        record=record,
        task=_task_name(record),
        checkpoint=source_name(record.recipe.model.name),
        data_name=source_name(record.recipe.data.name),
        headline=headline(record),
        scores=_scores(record),
        panels=sections.training_panels(record),
        num_wrong=sum(map(mistakes.is_error, record.predictions)),
        classes=mistakes.class_rows(record),
        confusion=mistakes.confusion_matrix(record),
        groups=mistakes.group_strips(record),
        group_rows=mistakes.group_rows(record),
        edits=mistakes.edit_split(record),
        word_confusions=_word_confusions(record),
        ranking=curves.ranking(record),
        calibration=sections.calibration(record),
        coverage=curves.coverage(record),
        missing=missing,
        regression=regression.targets(record),
        errors=mistakes.cards(record, worst, shown),
        gallery=mistakes.gallery(record, shown, {row["id"] for row in worst}),
        data=sections.data_overview(record),
        costs=sections.costs(record),
        environment=sections.environment(record),
        log=dict(zip(("columns", "rows", "total"), sections.log_table(record), strict=True)),
        recipe=write_yaml(public_recipe(record.recipe)),
        most_labels=sections.MOST_LABELS,
        percent=percent,
        small_bar=small_bar,
        count_rows=rows,
    )


def _task_name(record: RunRecord) -> str:
    name = str(record.metrics.get("task", record.recipe.task.name)).replace("_", " ").capitalize()
    return name.replace("classification", "regression") if is_regression(record) else name


def _scores(record: RunRecord) -> dict[str, Any]:
    """Return all metrics of the scored splits, in columns, with their intervals."""
    roles = [role for role in ("test", "validation") if record.metrics.get(role)]
    names = dict.fromkeys(
        key
        for role in roles
        for key, value in record.metrics[role].items()
        if key not in ("num_examples", "num_words") and (value is None or isinstance(value, (int, float)))
    )
    ordered = sorted(names, key=lambda name: name != record.primary)
    table = [
        (
            metric_name(name),
            [
                (metric_value(name, record.metrics[role].get(name)), _range(name, interval(record.metrics[role], name)))
                for role in roles
            ],
        )
        for name in ordered
    ]
    return {
        "roles": [(role, record.metrics[role].get("num_examples")) for role in roles],
        "rows": table,
    }


def _range(metric: str, pair: tuple[float, float] | None) -> str:
    return metric_range(metric, pair) if pair else ""


def _word_confusions(record: RunRecord) -> list[dict[str, Any]]:
    return [item for item in record.scores.get("confusions") or [] if isinstance(item, dict)]
