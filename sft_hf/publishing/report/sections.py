"""The sections of a report as plain data and charts: learning curves, calibration, data, costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from sft_hf.core.filesystem import human_bytes
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.confidence import Calibration, confidence_sentences, measured_calibration
from sft_hf.publishing.names import without_paths
from sft_hf.publishing.numbers import (
    UNKNOWN,
    axis_percent,
    count,
    decimal,
    duration,
    finite,
    metric_axis,
    metric_name,
    metric_value,
    percent,
    rows,
)
from sft_hf.publishing.report.charts import Line, bar_panel, line_panel, reliability_panel

MOST_LOG_LINES = 500  # lines in the table of the log
MOST_LABELS = 30  # of a table before the rest is folded
ROLES = ("train", "validation", "test")


# --- training ----------------------------------------------------------------------------------------------------


def curve(log: Iterable[dict[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """Return (step, value or None) of the log lines that have `key`."""
    found = [(finite(line.get("step")), finite(line[key])) for line in log if key in line]
    return [(step, value) for step, value in found if step is not None]


def selection_metric(record: RunRecord) -> str:
    """Return the metric that selected the weights."""
    return record.recipe.eval.metric_for_best_model or record.primary


def training_panels(record: RunRecord) -> list[Markup]:
    """Return losses, the validation metric, learning rate and gradient norm over the same steps."""
    log, train = record.log, record.metrics.get("train") or {}
    last = max([finite(line.get("step")) or 0.0 for line in log] + [finite(train.get("num_steps")) or 1.0])
    best = finite(train.get("best_step"))
    mark = None if best is None else (best, f"best: step {best:,.0f}")
    metric = selection_metric(record)
    metric = record.primary if metric == "loss" else metric
    loss, evaluated = curve(log, "loss"), curve(log, "eval_loss")
    scores = curve(log, f"eval_{metric}")
    panels = [
        ("Loss", [Line("train", loss, "quiet", True), Line("validation", evaluated, "own", True)], True, decimal),
        (
            f"{metric_name(metric)} on validation",
            [Line(metric_value(metric, scores[-1][1]) if scores else "", scores, "own", True)],
            False,
            metric_axis(metric),
        ),
        ("Learning rate", [Line(" ", curve(log, "learning_rate"), "quiet", True)], True, _tiny),
        ("Gradient norm", [Line(" ", curve(log, "grad_norm"), "quiet", True)], True, decimal),
    ]
    reached = dict(scores).get(best) if best is not None else None
    figures = []
    for number, (title, lines, zero, form) in enumerate(panels):
        shown = mark and (mark[0], f"{mark[1]}, {metric_value(metric, reached)}") if number == 1 and reached else mark
        told = _told(lines, title, best)
        chart = line_panel(title, told, lines, (0.0, last), from_zero=zero, mark=shown, y_format=form)
        if chart is not None:
            figures.append(Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(title, chart))
    return figures


def _tiny(value: float) -> str:
    """Format a learning rate: `0`, `0.02`, `1.5e-4`."""
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _told(lines: list[Line], title: str, best: float | None) -> str:
    told = []
    for line in lines:
        values = [value for _, value in line.points if value is not None]
        if values:
            name = f"{line.label} " if lines[1:] else ""
            told.append(
                f"{name}from {decimal(values[0])} at the first to {decimal(values[-1])} at the last of {len(values)}"
            )
    marked = f" The best step is {best:,.0f}." if best is not None else ""
    summary = "; ".join(told) or "nothing recorded"
    return f"{title} over the steps of training: {summary}.{marked} The log below has the numbers."


LOG_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "examples_per_second")


def log_table(record: RunRecord) -> tuple[list[str], list[list[str]], int]:
    """Return columns, a sample of rows, and the total number of rows.

    Rows are evenly spaced and include every evaluation: at most twice MOST_LOG_LINES.
    """
    metric = f"eval_{record.primary}"
    columns = [*LOG_COLUMNS, "eval_loss", *([metric] if metric != "eval_loss" else [])]
    present = [column for column in columns if any(column in line for line in record.log)]
    stride = -(-len(record.log) // MOST_LOG_LINES) if record.log else 1
    kept = [line for index, line in enumerate(record.log) if index % stride == 0 or any("eval_" in key for key in line)]
    cells = [
        ["" if key not in line else decimal(line[key], 5) for key in present] for line in kept[-2 * MOST_LOG_LINES :]
    ]
    return present, cells, len(record.log)


# --- calibration -------------------------------------------------------------------------------------------------


def calibration(record: RunRecord) -> dict[str, Any] | None:
    """Return the reliability diagram, the histogram of confidence, a sentence and the bins; None without a record."""
    found = measured_calibration(record)
    if found is None:
        return None
    told = "; ".join(
        f"{rows(item['count'])} at {percent(item['confidence'])}: {percent(item['accuracy'])} right"
        for item in found.bins
    )
    title = f"Reliability diagram on {record.split}"
    bounds, heights = _confidence_histogram(found.bins)
    return {
        "sentence": _calibration_sentence(found, record.recipe.task.writes_transcripts),
        "chosen": " ".join(confidence_sentences(record)),
        "diagram": reliability_panel(
            title,
            f"Confidence against share right: {told}.",
            [(item["confidence"], item["accuracy"], item["count"]) for item in found.bins],
        ),
        "histogram": bar_panel(
            f"How confident the model is on {record.split}",
            f"Rows by confidence: {told}.",
            bounds,
            heights,
            x_format=axis_percent,
        ),
        "bins": found.bins,
        "ece": percent(found.error),
    }


def _calibration_sentence(found: Calibration, transcripts: bool) -> str:
    """Return a description of the calibration."""
    return (
        f"The model claims {percent(found.confidence)} confidence on average and is right in {percent(found.accuracy)} "
        f"of rows: {found.verdict}. Bin by bin, confidence is off by {found.error * 100:.1f} points (the expected "
        "calibration error)." + (" (A transcript counts as right when every word is.)" if transcripts else "")
    )


def _confidence_histogram(bins: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    width = min(item["high"] - item["low"] for item in bins)
    number = max(1, round(1 / width)) if width > 0 else 1
    counts = [0.0] * number
    for item in bins:
        counts[min(number - 1, round(item["low"] * number))] += item["count"]
    return [index / number for index in range(number + 1)], counts


# --- data --------------------------------------------------------------------------------------------------------


def data_overview(record: RunRecord) -> dict[str, Any]:
    """Return rows and lengths per split, histograms, label balance, findings and notes, as far as recorded."""
    data = record.metrics.get("data") or {}
    splits = {role: dict(value) for role, value in (data.get("splits") or {}).items() if isinstance(value, dict)}
    known = {"train": record.metrics.get("train"), **{role: record.metrics.get(role) for role in ROLES[1:]}}
    for role, figures in known.items():
        if role not in splits and figures and figures.get("num_examples") is not None:
            splits[role] = {"num_examples": figures["num_examples"]}
    ordered = [role for role in ROLES if role in splits] + [role for role in splits if role not in ROLES]
    table, histograms = [], []
    for role in ordered:
        lengths, unit = splits[role].get("lengths") or {}, splits[role].get("length_unit") or ""
        table.append(
            {"split": role, "rows": count(splits[role].get("num_examples"))}
            | {key: f"{decimal(lengths[key], 3)} {unit}" if key in lengths else "" for key in ("median", "p95", "max")}
        )
        if (drawn := _length_panel(role, lengths.get("histogram") or {}, unit)) is not None:
            histograms.append((f"{role.capitalize()}: {unit or 'length'} per row", drawn))
    return {
        "splits": table,
        "has_lengths": any(row["median"] for row in table),
        "histograms": histograms,
        **label_balance({role: splits[role]["labels"] for role in ordered if splits[role].get("labels")}),
        "findings": [(item["level"], without_paths(item["text"])) for item in data.get("findings") or []],
        "notes": [without_paths(note) for note in data.get("notes") or []],
    }


def _length_panel(role: str, histogram: dict[str, Any], unit: str) -> Markup | None:
    edges, counts = histogram.get("edges") or [], histogram.get("counts") or []
    if len(edges) != len(counts) + 1 or not counts or None in map(finite, [*edges, *counts]):
        return None
    if len(counts) == 1:  # a single bar would be a square
        number = rows(counts[0])
        return Markup("<p>{} of {} {} each.</p>").format(number, decimal((edges[0] + edges[-1]) / 2), unit)
    most = max(range(len(counts)), key=counts.__getitem__)
    told = f"most rows, {counts[most]:,}, have {decimal(edges[most])} to {decimal(edges[most + 1])} {unit}"
    return bar_panel(
        f"Lengths of {role} rows",
        f"Rows by length from {decimal(edges[0])} to {decimal(edges[-1])} {unit}: {told}.",
        edges,
        counts,
    )


def label_balance(labels: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Return the rows of each label per split, most frequent first, and the share in the first split for a bar."""
    if not labels:
        return {"label_roles": [], "labels": []}
    roles = list(labels)
    first = labels[roles[0]]
    total, most = max(1, sum(first.values())), max(1, *first.values(), 1)
    names = list(dict.fromkeys(name for counts in labels.values() for name in counts))
    names.sort(key=lambda name: -first.get(name, 0))
    return {
        "label_roles": roles,
        "labels": [
            {
                "label": name,
                "counts": [count(labels[role].get(name, 0)) for role in roles],
                "share": percent(first.get(name, 0) / total),
                "bar": first.get(name, 0) / most,
            }
            for name in names
        ],
    }


# --- costs -------------------------------------------------------------------------------------------------------


def costs(record: RunRecord) -> list[tuple[str, str]]:
    """Return the resources that the run used, as (name, value)."""
    train, model = record.metrics.get("train") or {}, record.metrics.get("model") or {}
    memory = finite(train.get("peak_memory_bytes"))
    epochs = finite(train.get("num_epochs"))
    found = [
        ("Training time", duration(train.get("runtime_seconds"))),
        ("Total time", duration(train.get("total_seconds"))),
        ("Speed", f"{decimal(train.get('examples_per_second'), 3)} rows/s"),
        ("Peak memory", UNKNOWN if memory is None else human_bytes(memory)),
        ("Steps", count(train.get("num_steps"))),
        ("Epochs", "of a stream" if epochs is None else decimal(epochs, 3)),
        ("Rows per forward pass", count(train.get("rows_per_forward_pass"))),
        ("Parameters", count(model.get("num_parameters"))),
        ("of which trained", count(model.get("num_trainable_parameters"))),
        ("Seed", str(record.metrics.get("seed", UNKNOWN))),
    ]
    return [(name, value) for name, value in found if not value.startswith(UNKNOWN)]


def environment(record: RunRecord) -> list[tuple[str, str]]:
    """Return the hardware and versions of the run, as (name, value)."""
    found = record.metrics.get("environment") or {}
    plain = [(key.replace("_", " "), str(value)) for key, value in found.items() if not isinstance(value, dict)]
    return plain + [(key, str(value)) for key, value in (found.get("versions") or {}).items()]
