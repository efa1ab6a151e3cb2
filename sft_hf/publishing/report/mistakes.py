"""Errors of a model: confusions, classes, groups, and the most confident errors."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import count, decimal, finite, interval, metric_name, percent, percent_range, rows
from sft_hf.publishing.regression import errors_by_row, is_regression
from sft_hf.publishing.report.charts import Strip, interval_strips, small_bar
from sft_hf.publishing.report.headline import scale_from_zero
from sft_hf.publishing.report.pages import legible, wording

if TYPE_CHECKING:
    from sft_hf.tasks.base import Preview

LARGEST_MATRIX = 30  # labels up to which a confusion matrix is readable
MOST_CONFUSIONS = 20  # of the list in place of the matrix; next to a matrix, FEW are enough
FEW_CONFUSIONS = 8
GALLERY = {"image": 12, "speech": 6}  # rows of each kind, by modality
SHADES = 6  # shades of a heat map, in the style sheet
MOST_CONTENT = 2_000_000  # bytes of images and recordings on a page
LONG_TEXT, LONGEST_TEXT = 420, 20_000  # characters of a text above which it is folded, or truncated

_MEDIA = re.compile(r"(image|audio)/[a-z0-9][a-z0-9.+-]*")


# --- rows --------------------------------------------------------------------------------------------------------


def is_error(row: Mapping[str, Any]) -> bool:
    """Whether a row of predictions.jsonl is wrong: a different label, set of labels, or word."""
    reference, prediction = row.get("reference"), row.get("prediction")
    if isinstance(reference, list) and isinstance(prediction, list):
        return set(reference) != set(prediction)
    if isinstance(reference, str) and isinstance(prediction, str):
        return reference.split() != prediction.split()
    return reference is not None and reference != prediction


def worst_rows(record: RunRecord, limit: int) -> list[dict[str, Any]]:
    """Return the wrong rows, the most confident first, ties in the order of their ids.

    For regression, the rows with the largest errors.
    """
    if is_regression(record):
        off = errors_by_row(record)
        rows_off = [row for row in record.predictions if off.get(row["id"])]
        return sorted(rows_off, key=lambda row: (-off[row["id"]], row["id"]))[:limit]
    wrong = [row for row in record.predictions if is_error(row)]
    return sorted(wrong, key=lambda row: _by_confidence(row, -1.0))[:limit]


def _by_confidence(row: dict[str, Any], sign: float) -> tuple[float, int]:
    """Sort key; rows without a confidence are last."""
    confidence = finite(row.get("confidence"))
    return (2.0 if confidence is None else sign * confidence, row["id"])


def gallery_rows(record: RunRecord, shown_already: Container[int]) -> dict[str, list[dict[str, Any]]]:
    """Return example rows, `wrong` and `right`, the least confident first; none for texts, which take time to read.

    None for regression, where no answer is simply right.
    """
    limit = 0 if is_regression(record) else GALLERY.get(record.recipe.task.modality, 0)
    rows: dict[str, list[dict[str, Any]]] = {"wrong": [], "right": []}
    for row in sorted(record.predictions, key=lambda row: _by_confidence(row, 1.0)):
        kind = "wrong" if is_error(row) else "right"
        if row.get("reference") is not None and row["id"] not in shown_already and len(rows[kind]) < limit:
            rows[kind].append(row)
    return rows


def cards(
    record: RunRecord, chosen: Sequence[dict[str, Any]], shown: Mapping[int, Preview], room: int = MOST_CONTENT
) -> list[dict[str, Any]]:
    """Return the data that a report shows of each row: content, reference, prediction, confidence.

    Args:
        record: the run.
        chosen: rows of predictions.jsonl.
        shown: their contents by id.
        room: maximum total bytes of contents; further rows are only named.
    """
    found = []
    off = errors_by_row(record) if is_regression(record) else {}
    for row in chosen:
        content = shown.get(row["id"])
        if content is not None and content.content:
            room -= len(content.content)
        card: dict[str, Any] = {
            "id": row["id"],
            "right": not is_error(row),
            "confidence": percent(row.get("confidence")),
            "off": decimal(off[row["id"]]) if off else "",
            "reference": wording(_answer(row.get("reference")), 240),
            "prediction": wording(_answer(row.get("prediction")), 240),
            "words": None,
            **_content(content, room >= 0),
        }
        if record.recipe.task.writes_transcripts:
            card["words"] = word_differences(str(row.get("reference")), str(row.get("prediction")))
        found.append(card)
    return found


def gallery(
    record: RunRecord, shown: Mapping[int, Preview], shown_already: Container[int]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the cards of `gallery_rows` by title; empty if no image or recording can be shown."""
    titles = {"wrong": "Wrong, the least confident first", "right": "Right, the least confident first"}
    return [
        (titles[kind], cards(record, chosen, shown, MOST_CONTENT // 2))
        for kind, chosen in gallery_rows(record, shown_already).items()
        if any(row["id"] in shown for row in chosen)
    ]


def _answer(value: Any) -> Any:
    """Return the numbers of several targets as a list of texts; anything else unchanged."""
    if isinstance(value, dict):
        return [f"{name}: {decimal(number, 6)}" for name, number in value.items()]
    return decimal(value, 6) if isinstance(value, float) else value


def _content(shown: Preview | None, fits: bool) -> dict[str, Any]:
    """Return the part of a card that shows the row itself: `kind` is text, image, audio or none."""
    if shown is None:
        return {"kind": "none", "text": "", "uri": ""}
    match = _MEDIA.fullmatch(shown.media_type)
    if shown.content and match and fits:
        uri = f"data:{shown.media_type};base64,{base64.b64encode(shown.content).decode('ascii')}"
        return {"kind": match[1], "text": shown.text, "uri": uri}
    if shown.content:
        reason = "too large for this page" if match else f"{shown.media_type}, which a page cannot show"
        return {"kind": "none", "text": f"{shown.text} ({reason})", "uri": ""}
    text = shown.text if len(shown.text) <= LONGEST_TEXT else shown.text[:LONGEST_TEXT] + " …"
    return {"kind": "text", "text": text, "uri": "", "start": _start(text), "length": len(shown.text)}


def _start(text: str) -> str:
    """Return the beginning of a long text, up to the end of a word; empty for a text short enough to show in full."""
    if len(text) <= LONG_TEXT:
        return ""
    cut = text[:LONG_TEXT]
    return (cut.rsplit(None, 1)[0] if " " in cut[LONG_TEXT // 2 :] else cut) + " …"


def word_differences(reference: str, prediction: str) -> dict[str, Markup]:
    """Return both transcripts as HTML, with the words that differ marked: missing ones `del`, inserted ones `ins`."""
    said, heard = legible(reference).split(), legible(prediction).split()
    matcher = difflib.SequenceMatcher(a=said, b=heard, autojunk=False)
    left, right = [], []
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        old, new = escape(" ".join(said[start:end])), escape(" ".join(heard[other_start:other_end]))
        if kind == "equal":
            left.append(old)
            right.append(new)
            continue
        if old:
            left.append(Markup("<del>{}</del>").format(old))
        if new:
            right.append(Markup("<ins>{}</ins>").format(new))
    return {"reference": Markup(" ").join(left), "prediction": Markup(" ").join(right) or Markup("(nothing)")}


# --- classes -----------------------------------------------------------------------------------------------------


def class_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return the metrics of each class, the lowest F1 first, classes without rows last."""
    found = [row for row in record.scores.get("per_class") or [] if isinstance(row, dict)]
    found.sort(key=lambda row: (not row.get("support"), finite(row.get("f1")) or 0.0))
    return [
        {
            "label": row.get("label"),
            "support": count(row.get("support")),
            **{key: percent(row.get(key)) for key in ("precision", "recall", "f1")},
            "bar": small_bar(finite(row.get("f1"))),
        }
        for row in found
    ]


def confusion_matrix(record: RunRecord) -> dict[str, Any] | None:
    """Return labels and cells of the confusion matrix if it is readable, and always the confusions as a list.

    A cell has `count`, `part` (of the rows with its reference), `shade` (0 to SHADES) and `right`. None: no matrix.
    """
    matrix = record.scores.get("confusion_matrix")
    labels = [row.get("label") for row in record.scores.get("per_class") or []]
    if not matrix or len(matrix) != len(labels):
        return None
    cells = []
    for index, line in enumerate(matrix if len(labels) <= LARGEST_MATRIX else []):
        total = sum(line)
        cells.append([_cell(number, total, index == other) for other, number in enumerate(line)])
    pairs = [
        (number, labels[index], labels[other], sum(line))
        for index, line in enumerate(matrix)
        for other, number in enumerate(line)
        if number and index != other
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return {
        "labels": labels,
        "cells": cells,
        "dense": len(labels) > 12,
        "pairs": [
            {"count": count(number), "reference": said, "prediction": got, "part": percent(number / total)}
            for number, said, got, total in pairs[: FEW_CONFUSIONS if cells else MOST_CONFUSIONS]
        ],
        "num_pairs": len(pairs),
    }


def _cell(number: int, total: int, right: bool) -> dict[str, Any]:
    part = number / total if total else 0.0
    shade = 0 if not number else min(SHADES, 1 + int(part * SHADES))
    return {"count": number, "part": percent(part), "shade": shade, "right": right}


# --- speech ------------------------------------------------------------------------------------------------------


def group_strips(record: RunRecord) -> Markup | None:
    """Return the word error rate of each group on one scale, highest first; None without groups."""
    groups = record.scores.get("groups") or {}
    strips = [
        Strip(
            f"{wording(name, 14)} ({rows(figures.get('num_examples'))})",
            value,
            interval(figures, record.primary),
            "own",
        )
        for name, figures in groups.items()
        if (value := finite(figures.get(record.primary))) is not None
    ]
    if not strips:
        return None
    strips.sort(key=lambda strip: -strip.value)
    told = "; ".join(f"{strip.label}: {percent(strip.value)}, {percent_range(strip.interval)}" for strip in strips)
    highest = max(end for strip in strips for end in (strip.value, *(strip.interval or ())))
    small = next((end for end in (0.02, 0.05, 0.1, 0.2, 0.5) if highest <= end), None)
    scale = scale_from_zero(strips) if small is None else (0.0, small)
    return interval_strips(f"{metric_name(record.primary)} by group", told, strips, scale)


def group_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return the metrics of each group as text."""
    return [
        {
            "group": name,
            "rows": count(figures.get("num_examples")),
            "words": count(figures.get("num_words")),
            "value": percent(figures.get(record.primary)),
            "interval": percent_range(interval(figures, record.primary)),
        }
        for name, figures in (record.scores.get("groups") or {}).items()
    ]


def edit_split(record: RunRecord) -> list[dict[str, Any]]:
    """Return the division of word errors into substitutions, deletions and insertions."""
    kinds = {"substitutions": "wrong word", "deletions": "left out", "insertions": "added"}
    found = {key: value for key in kinds if (value := finite(record.scores.get(key))) is not None}
    total = sum(found.values())
    return [
        {
            "kind": key.capitalize(),
            "meaning": kinds[key],
            "rate": percent(value),
            "part": percent(value / total if total else 0.0),
            "bar": small_bar(value / total if total else 0.0),
        }
        for key, value in found.items()
    ]
