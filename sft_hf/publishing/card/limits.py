"""Limitations for the model card: gaps in the data, frequent errors, and what was not measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.baselines import worse_than
from sft_hf.publishing.card.markdown import escape
from sft_hf.publishing.names import last_part, without_paths
from sft_hf.publishing.numbers import count, finite, interval, metric_value, rows

FEW_ROWS = 20  # of a class, below which its metrics are unreliable
MOST_NAMED = 10  # classes or confusions in one sentence
LONGEST_FINDING = 500  # characters

_ROWS = re.compile(r": rows \d.*", re.DOTALL)
_CUT = "and were truncated"
_HELD_OUT = "(held out for validation)"  # already covered by the warnings on train
_WINDOW = re.compile(r"Whisper's window: (?:.* )?([\d.]+) of ([\d.]+) s")
_WINDOW_ADVICE = (
    " The scores are of this window; a pipeline uses the full window, where words may differ; this was not measured."
)


def limits(record: RunRecord, noun: str) -> str:
    """Return the limitations as a list; it is never empty, since some things are never measured."""
    rare = list(_rare_labels(record))
    found = [
        *(_sentence(text, record) for text in worse_than(record)),
        *rare,
        *_few_rows(record),
        *_confusions(record),
        *_groups(record),
        *_findings(record, bool(rare)),
    ]
    found += [*_reach(record), _not_measured(record, noun)]
    return "\n".join(f"- {line}" for line in found)


def _rare_labels(record: RunRecord) -> Iterable[str]:
    train = (record.metrics.get("data", {}).get("splits") or {}).get("train", {}).get("labels") or {}
    if rare := {label: number for label, number in train.items() if number < FEW_ROWS}:
        yield f"Fewer than {FEW_ROWS} training rows: {_counted(rare)}."


def _few_rows(record: RunRecord) -> Iterable[str]:
    scored = {entry["label"]: entry["support"] for entry in record.scores.get("per_class") or []}
    if rare := {label: number for label, number in scored.items() if number < FEW_ROWS}:
        yield f"Fewer than {FEW_ROWS} {record.split} rows, too few for reliable figures: {_counted(rare)}."


def _counted(rows_of: dict[str, int]) -> str:
    """Return the rarest labels with their rows, and the number of further labels."""
    ordered = sorted(rows_of.items(), key=lambda item: item[1])
    named = ", ".join(f"{escape(label, 40)} ({number})" for label, number in ordered[:MOST_NAMED])
    return named + (f" and {count(len(ordered) - MOST_NAMED)} more labels" if len(ordered) > MOST_NAMED else "")


def _confusions(record: RunRecord) -> Iterable[str]:
    matrix = record.scores.get("confusion_matrix") or []
    labels = [entry["label"] for entry in record.scores.get("per_class") or []]
    if len(labels) != len(matrix):
        return
    wrong = [
        (number, truth, answer)
        for truth, line in enumerate(matrix)
        for answer, number in enumerate(line)
        if truth != answer and number
    ]
    if not wrong:
        return
    wrong.sort(key=lambda entry: (-entry[0], entry[1:]))
    named = ", ".join(
        f"{escape(labels[truth], 40)} as {escape(labels[answer], 40)} ({number} of {sum(matrix[truth])})"
        for number, truth, answer in wrong[:5]
    )
    yield f"Most frequent mistakes on {record.split}: {named}."


def _groups(record: RunRecord) -> Iterable[str]:
    groups: dict[str, dict[str, Any]] = {
        name: figures for name, figures in (record.scores.get("groups") or {}).items() if figures.get("wer") is not None
    }
    if len(groups) < 2:
        return
    best, worst = (choose(groups, key=lambda name: groups[name]["wer"]) for choose in (min, max))
    if groups[worst]["wer"] > groups[best]["wer"]:
        high, low = (metric_value("wer", groups[name]["wer"]) for name in (worst, best))
        yield f"Not equally good for all groups: word error rate {high} for {escape(worst)}, {low} for {escape(best)}."


def _findings(record: RunRecord, named_rare_labels: bool) -> Iterable[str]:
    """Yield warnings about the data from the run's checks, without row numbers."""
    for finding in record.metrics.get("data", {}).get("findings") or []:
        if finding["level"] == "warning" and not (named_rare_labels and finding["text"].startswith("train has ")):
            yield _sentence(_ROWS.sub("", finding["text"]), record)


def _sentence(text: str, record: RunRecord) -> str:
    """Return a note as a sentence with a capital, unless it starts with the name of a file or of the data."""
    text = without_paths(text)
    is_name = "." in text.partition(" ")[0] or text.startswith(f"{last_part(record.recipe.data.name)}:")
    text = escape(text, LONGEST_FINDING)
    capital = text if is_name else text[:1].upper() + text[1:]
    return capital + ("" if text.endswith((".", "…")) else ".")


def _reach(record: RunRecord) -> Iterable[str]:
    """Yield the maximum length of inputs, and how rows were truncated or skipped."""
    data, settings = record.metrics.get("data", {}), record.recipe.task
    notes = [str(note).replace(" (task.max_length)", "") for note in data.get("notes") or []]
    limit = getattr(settings, "max_length", None)
    if limit is not None:
        cut = [escape(without_paths(note), LONGEST_FINDING) for note in notes if _CUT in note and _HELD_OUT not in note]
        notes = [note for note in notes if _CUT not in note]
        yield (
            ". ".join([f"Reads at most the first {limit} tokens of a text; the rest is cut", "; ".join(cut)]).rstrip(
                " ."
            )
            + "."
        )
    longest = finite(((data.get("splits") or {}).get("train", {}).get("lengths") or {}).get("max"))
    if settings.modality == "speech" and longest is not None:
        yield f"Trained on recordings of at most {longest:.1f} s."
    for note in notes:
        yield _sentence(note, record) + (_WINDOW_ADVICE if _is_short_window(note) else "")


def _is_short_window(note: str) -> bool:
    """Whether a note reports that training and scoring used less than Whisper's full window."""
    found = _WINDOW.match(note)
    return found is not None and float(found[1]) < float(found[2])


def _not_measured(record: RunRecord, noun: str) -> str:
    others = {
        "text": "texts of other sources, times or languages",
        "image": "images of other cameras, lighting or scenes",
        "recording": "other speakers, rooms, microphones or languages",
    }.get(noun, "rows of other sources")
    pair = interval(record.scores, record.primary)
    if pair is None:
        return f"Not measured: {others}."
    number = rows(record.scores.get("num_examples"), noun)
    return (
        f"Not measured: {others} than those of the data. The 95 % interval reflects the number of rows ({number}), "
        "not the variation between seeds or data sets."
    )
