"""Runs on paper, made in memory, and what holds for every page that is made of them."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np

from sft_hf.core.recipe.recipe import Recipe, validate_recipe
from sft_hf.core.run.outputs import SplitOutputs
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.report.pages import POLICY
from sft_hf.publishing.report.run_report import worst_errors
from sft_hf.tasks.base import Preview
from sft_hf.tasks.scoring.classification import multi_label_metrics, single_label_metrics
from sft_hf.tasks.scoring.confidence import calibration_metrics
from sft_hf.tasks.scoring.word_errors import transcription_metrics

LABELS = ["sport", "money", "food"]
SENTENCE = "freeze the amoebas and move them to the chemistry wing".split()


def recipe(task: str, **changes: Any) -> Recipe:
    """A recipe whose data lie in a folder of some machine."""
    data = {
        "task": {"name": task},
        "model": {"name": "org/base-model"},
        "data": {"name": "/home/someone/secret_place/reviews"},
        "output_dir": "/home/someone/secret_place/run",
    }
    return validate_recipe({**data, **changes})


def training_log(metric: str, steps: int = 60, every: int = 20) -> list[dict[str, Any]]:
    """A line every 5 steps, and an evaluation every so many."""
    log: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        loss = 0.1 + 2 * math.exp(-step / 15)
        log.append({"step": step, "epoch": step / steps, "loss": loss, "learning_rate": 1e-4 * (1 - step / steps)})
        log[-1] |= {"grad_norm": loss * 2, "examples_per_second": 31.25}
        if step % every == 0:
            log.append({"step": step, "eval_loss": loss * 1.1, f"eval_{metric}": 0.5 + step / (2.5 * steps)})
    return log


def common(primary: str) -> dict[str, Any]:
    """The part of metrics.json that all tasks have."""
    return {
        "primary_metric": primary,
        "train": {
            "runtime_seconds": 318.2,
            "total_seconds": 345.1,
            "examples_per_second": 34.34,
            "num_steps": 60,
            "num_epochs": 1.5,
            "num_examples": 500,
            "final_loss": 0.1234,
            "best_step": 40,
            "rows_per_forward_pass": 16,
            "peak_memory_bytes": 1985732608,
        },
        "model": {
            "name": "org/base-model",
            "revision": None,
            "num_parameters": 22716296,
            "num_trainable_parameters": 22716296,
        },
        "environment": {"python": "3.11.7", "device": "cpu", "num_threads": 2, "versions": {"torch": "2.14.1"}},
        "seed": 42,
    }


def overview(labels: list[str] | None, unit: str | None) -> dict[str, Any]:
    """What metrics.json says of the data."""
    split: dict[str, Any] = {"num_examples": 500}
    if unit:
        histogram = {"edges": [1.0, 10.0, 20.0, 30.0], "counts": [300, 150, 50]}
        split |= {"length_unit": unit, "lengths": {"median": 8.5, "p95": 25.0, "max": 30.0, "histogram": histogram}}
    if labels:
        split["labels"] = {name: 500 // len(labels) for name in labels}
    warning = "3 of 200 test rows are in train too (/home/someone/secret_place/test.csv row 4)"
    return {
        "name": "/home/someone/secret_place/reviews",
        "revision": None,
        "splits": {"train": split, "validation": split, "test": split},
        "findings": [{"level": "warning", "text": warning}, {"level": "note", "text": "food is rare"}],
        "notes": ["12 rows are longer than 256 tokens and were truncated"],
    }


def single_label(labels: list[str] = LABELS, *, task: str = "text_classification", rows: int = 200) -> RunRecord:
    """A classifier that is wrong in a tenth of the rows."""
    generator = np.random.default_rng(0)
    truth = np.arange(rows) % len(labels)
    answers = np.where(generator.random(rows) < 0.1, (truth + 1) % len(labels), truth)
    confidences = np.clip(1 - np.abs(generator.normal(0, 0.15, rows)), 0.2, 1.0).tolist()
    scores = {"loss": 0.31, **single_label_metrics(answers, truth, labels, confidence_samples=50)}
    scores |= calibration_metrics(confidences, (answers == truth).tolist())
    base = single_label_metrics(np.zeros(rows, dtype=int), truth, labels, confidence_samples=50)
    metrics = common("accuracy") | {"task": task, "test": scores, "validation": {**scores, "loss": 0.29}}
    metrics["baseline"] = {
        "name": "majority class",
        "description": f"always answering {labels[0]!r}, the most frequent label of train",
        "split": "test",
        "metrics": {key: base[key] for key in ("accuracy", "accuracy_ci95")},
    }
    metrics["data"] = overview(labels, "tokens" if task == "text_classification" else None)
    predictions = [
        {"id": index, "reference": labels[said], "prediction": labels[answer], "confidence": confidence}
        for index, (said, answer, confidence) in enumerate(zip(truth, answers, confidences, strict=True))
    ]
    logits = np.random.default_rng(1).normal(size=(rows, len(labels))) + 3.0 * np.eye(len(labels))[answers]
    outputs = SplitOutputs(
        "test",
        "single_label_classification",
        np.arange(rows),
        tuple(labels),
        logits=logits.astype(np.float32),
        references=truth,
    )
    return RunRecord("reviews", recipe(task), metrics, predictions, training_log("accuracy"), outputs)


def multi_label() -> RunRecord:
    """Rows with any number of labels."""
    generator = np.random.default_rng(0)
    truth = (generator.random((60, 3)) < 0.4).astype(int)
    scores = np.clip(truth * 0.5 + generator.random((60, 3)) * 0.6, 0, 1)
    measured = {"loss": 0.4, **multi_label_metrics(scores, truth, 0.5, LABELS, confidence_samples=50)}
    predictions = []
    for index, (row, wanted) in enumerate(zip(scores, truth, strict=True)):
        chosen = {LABELS[i]: float(row[i]) for i in np.flatnonzero(row >= 0.6)}
        reference = [LABELS[i] for i in np.flatnonzero(wanted)]
        predictions.append({"id": index, "reference": reference, "prediction": list(chosen), "scores": chosen})
        predictions[-1]["confidence"] = float(row.max())
    metrics = common("micro_f1") | {"task": "text_classification", "test": measured, "validation": measured}
    outputs = SplitOutputs(
        "test",
        "multi_label_classification",
        np.arange(60),
        tuple(LABELS),
        threshold=0.5,
        logits=(4 * scores - 2).astype(np.float32),
        references=truth.astype(np.uint8),
    )
    return RunRecord("topics", recipe("text_classification"), metrics, predictions, training_log("micro_f1"), outputs)


def speech() -> RunRecord:
    """A recognizer that gets a word wrong in every fifth recording."""
    references = [" ".join([*SENTENCE, f"number{index}"]) for index in range(40)]
    answers = [
        text.replace("amoebas", "a <b>moebas") if index % 5 == 0 else text for index, text in enumerate(references)
    ]
    confidences = [0.99 - index / 100 for index in range(40)]
    groups = ["seen" if index < 30 else "unseen" for index in range(40)]
    scores = {"loss": 0.2, **transcription_metrics(answers, references, groups=groups, confidence_samples=50)}
    scores |= calibration_metrics(confidences, [a == b for a, b in zip(answers, references, strict=True)])
    metrics = common("wer") | {"task": "speech_recognition", "test": scores, "validation": scores}
    metrics["baseline"] = {
        "name": "zero-shot",
        "description": "the checkpoint before training",
        "split": "test",
        "metrics": {"wer": 0.752, "wer_ci95": [0.68, 0.83]},
    }
    metrics["data"] = overview(None, "seconds")
    predictions = [
        {"id": index, "reference": said, "prediction": answer, "confidence": confidence}
        for index, (said, answer, confidence) in enumerate(zip(references, answers, confidences, strict=True))
    ]
    return RunRecord("dictation", recipe("speech_recognition"), metrics, predictions, training_log("wer"))


def with_metrics(record: RunRecord, **changes: Any) -> RunRecord:
    """The record with keys of metrics.json replaced, or left out where the value is None."""
    metrics = {key: value for key, value in {**record.metrics, **changes}.items() if value is not None}
    return replace(record, metrics=metrics)


def picture() -> bytes:
    """A small JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 80, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


def recording() -> bytes:
    """Half a second of Ogg."""
    import soundfile

    buffer = io.BytesIO()
    tone = np.sin(np.arange(8000) * 0.17).astype(np.float32) * 0.3
    soundfile.write(buffer, tone, 16000, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def shown(record: RunRecord) -> dict[int, Preview]:
    """The rows of the worst errors, as their task shows them."""
    task = record.metrics["task"]
    if task == "image_classification":
        return {row: Preview(f"{row:04}.jpg", picture(), "image/jpeg") for row in worst_errors(record)}
    if task == "speech_recognition":
        return {row: Preview(f"{row:04}.ogg", recording(), "audio/ogg") for row in worst_errors(record)}
    return {row: Preview(f"Row {row}: " + "the coach & the bank " * (5 + row)) for row in worst_errors(record)}


# --- pages -----------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "br", "link", "hr", "input"}
SVG_SHAPES = {"line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps elements, ids, headings and tables."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_SHAPES
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))
            if (
                "table" in self.open
                and ("td" in self.open or "th" in self.open)
                and self.open[-1] not in ("title", "desc")
            ):
                self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        shown = "".join(data for tag, data in self.texts if tag != "style")
        return " ".join(shown.replace("\u00a0", " ").split())

    def headings(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.elements if re.fullmatch(r"h[1-6]", tag)]


def check(html: str) -> Page:
    """What holds for every page: balanced tags, ids once, headings in order, no script, nothing from outside."""
    html.encode("utf-8")
    page = Page(html)
    tags = Counter(tag for tag, _ in page.elements)
    assert not tags.keys() & {"script", "iframe", "object", "embed", "form", "base", "link", "style_"}
    assert tags["h1"] == tags["main"] == tags["header"] == tags["footer"] == tags["style"] == 1
    policies = [
        values["content"] for _, values in page.elements if values.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == [POLICY]
    ids = Counter(values["id"] for _, values in page.elements if "id" in values)
    assert set(ids.values()) == {1}
    for tag, values in page.elements:
        assert not [name for name in values if name.startswith("on")], values
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            if name in values:
                assert re.match(r"data:(image|audio)/[a-z0-9.+-]+;base64,|#", values[name] or ""), (tag, values)
        for reference in (values.get("aria-labelledby") or "").split():
            assert ids[reference] == 1
        if tag == "svg":
            assert values.get("aria-hidden") == "true" or values["role"] == "img"
        if tag == "th":
            assert values.get("scope") in ("row", "col")
        if tag == "a":
            assert ids[(values["href"] or "")[1:]] == 1
    assert "url(" not in html and "@import" not in html
    assert tags["table"] == tags["caption"]
    described = [values for tag, values in page.elements if tag == "svg" and values.get("role") == "img"]
    assert tags["desc"] == len(described) and all(data.strip() for tag, data in page.texts if tag == "desc")
    levels = page.headings()
    assert levels[0] == 1 and all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert "nan" not in page.text.lower().split() and "None" not in page.text.split()
    return page


def table(page: Page, *header: str) -> list[list[str]]:
    """The rows of the table whose header starts so."""
    for rows in page.tables:
        if rows and [cell.strip() for cell in rows[0][: len(header)]] == list(header):
            return [[" ".join(cell.replace("\u00a0", " ").split()) for cell in row] for row in rows[1:]]
    raise AssertionError(f"no table {header}")
