"""report.html: what it says of a run."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from typing import Any

import pytest
from publishing.report import report_records as records

from sft_hf.publishing import numbers
from sft_hf.publishing.report import charts, sections
from sft_hf.publishing.report.run_report import build_report, rows_to_show, worst_errors
from sft_hf.tasks.base import Preview

check, table = records.check, records.table
TASKS = {
    "text": records.single_label,
    "image": lambda: records.single_label(task="image_classification"),
    "speech": records.speech,
    "multi-label": records.multi_label,
}


@pytest.mark.parametrize("name", TASKS)
def test_every_section_is_there(name):
    record = TASKS[name]()
    page = check(build_report(record, records.shown(record)))
    for words in ("Training", "Scores and errors", "The most confident errors", "The data"):
        assert words in page.text
    assert "Speed, memory and versions" in page.text and "Recipe and log" in page.text
    assert record.name in page.text and "org/base-model" in page.text
    assert sum(tag == "details" for tag, _ in page.elements) >= 2


def test_the_first_screen_says_how_good_against_what_and_how_sure():
    record = records.single_label()
    page = check(build_report(record, {}))
    scores = record.metrics["test"]
    low, high = (f"{end * 100:.1f} %" for end in scores["accuracy_ci95"])
    value = f"{scores['accuracy'] * 100:.1f} %"
    assert (
        f"{value} of 200 test rows are right; for new data of the same kind, expect between {low} and {high}"
        in page.text
    )
    base = record.metrics["baseline"]["metrics"]["accuracy"]
    assert (
        f"always answering 'sport', the most frequent label of train: {base * 100:.1f} %. The model is clearly better"
        in (page.text)
    )
    assert "Warning. 3 of 200 test rows are in train too" in page.text
    text = page.text
    assert text.index(value) < text.index("Warning.") < text.index("Training")


def test_word_error_rates_are_worded_as_errors():
    record = records.speech()
    page = check(build_report(record, {}))
    wer, words = record.metrics["test"]["wer"], record.metrics["test"]["num_words"]
    assert f"{wer * 100:.1f} word errors per 100 words spoken, in 40 test recordings with {words} words" in page.text
    assert "word error rate on test (lower is better)" in page.text
    assert "the checkpoint before training: 75.2 %. The model is clearly better" in page.text


def test_a_baseline_within_the_interval_is_not_called_worse():
    record = records.single_label()
    interval, value = record.metrics["test"]["accuracy_ci95"], record.metrics["test"]["accuracy"]
    base = {**record.metrics["baseline"], "metrics": {"accuracy": value - 0.001, "accuracy_ci95": interval}}
    page = check(build_report(records.with_metrics(record, baseline=base), {}))
    assert "The model is not clearly different: the intervals overlap" in page.text
    base["metrics"] = {"accuracy": 0.999, "accuracy_ci95": [0.998, 1.0]}
    assert "The model is clearly worse" in check(build_report(records.with_metrics(record, baseline=base), {})).text


def test_the_numbers_are_the_records():
    record = records.single_label()
    page = check(build_report(record, {}))
    test = record.metrics["test"]
    shown = table(page, "Label", "Rows", "Precision")
    wanted = sorted(test["per_class"], key=lambda row: row["f1"])
    assert [row[:5] for row in shown] == [
        [
            row["label"],
            str(row["support"]),
            *(numbers.percent(row[key]).replace("\u00a0", " ") for key in ("precision", "recall", "f1")),
        ]
        for row in wanted
    ]
    matrix = [rows for rows in page.tables if rows[0] == ["", *records.LABELS]]
    assert [[int(cell) for cell in row[1:]] for row in matrix[0][1:]] == test["confusion_matrix"]
    bins = table(page, "Confidence from")
    assert [int(row[2]) for row in bins] == [item["count"] for item in test["calibration"]]
    assert f"expected calibration error {test['ece'] * 100:.1f} %" in page.text
    log = table(page, "step", "epoch", "loss")
    assert [row[2] for row in log] == [
        numbers.decimal(line["loss"], 5) if "loss" in line else "" for line in record.log
    ]
    assert ["Train", "500", "8.5 tokens", "25 tokens", "30 tokens"] in table(page, "Split", "Rows")
    assert "1985" not in page.text and "2.0 GB" in page.text and "22,716,296" in page.text


def test_temperature_and_abstention_stand_beside_calibration():
    record = records.single_label()
    test = {**record.metrics["test"], "coverage": 0.874, "selective_error": 0.041}
    told = {
        "temperature_scaling": {"temperature": 1.8312, "validation_ece_before": 0.0831, "validation_ece": 0.0214},
        "abstention": {"threshold": 0.7131, "coverage": 0.9, "selective_error": 0.03},
    }
    page = check(build_report(replace(record, metrics={**record.metrics, "techniques": told, "test": test}), {}))
    section = page.text.split("Calibration")[1].split("Accuracy (vertical)")[0]
    assert "a temperature of 1.831" in section and "calibration error there 2.1 %, before 8.3 %." in section
    answered = "on test it answers 87.4 % of the rows, and 4.1 % of these answers are wrong."
    assert f"abstains below a confidence of 0.7131; {answered}" in section
    nothing = replace(record, metrics={**record.metrics, "test": {**test, "coverage": 0.0, "selective_error": None}})
    nothing.metrics["techniques"] = {"abstention": {"threshold": 0.7}}
    assert "on test it answers 0.0 % of the rows." in check(build_report(nothing, {})).text
    without = check(build_report(record, {})).text
    assert "temperature" not in without and "abstain" not in without


def test_the_best_step_is_marked_in_every_panel():
    record = records.single_label()
    text = check(build_report(record, {})).text
    value = next(line["eval_accuracy"] for line in record.log if line["step"] == 40 and "eval_accuracy" in line)
    assert text.count("best: step 40") == 4 and f"best: step 40, {value * 100:.1f} %" in text
    train = {**record.metrics["train"], "best_step": None}
    assert "best: step" not in check(build_report(records.with_metrics(record, train=train), {})).text


def test_speech_has_groups_kinds_of_errors_and_marked_words():
    record = records.speech()
    html = build_report(record, records.shown(record))
    page = check(html)
    groups = table(page, "Group", "Rows")
    assert [row[0] for row in groups] == ["seen", "unseen"]
    assert groups[0][3] == f"{record.metrics['test']['groups']['seen']['wer'] * 100:.1f} %"
    kinds = {row[0].split()[0]: row[1] for row in table(page, "Kind")}
    assert kinds["Substitutions"] == f"{record.metrics['test']['substitutions'] * 100:.1f} %"
    first = record.metrics["test"]["confusions"][0]
    assert table(page, "Said", "Heard")[0][3] == str(first["count"])
    assert "<del>amoebas</del>" in html and "<ins>a &lt;b&gt;moebas</ins>" in html
    assert "freeze the <del>" in html


@pytest.mark.parametrize(("name", "kind"), [("image", "img"), ("speech", "audio")])
def test_pictures_and_recordings_are_inside_the_page(name, kind):
    record = TASKS[name]()
    shown = records.shown(record)
    page = check(build_report(record, shown))
    media = [values for tag, values in page.elements if tag == kind]
    ids = worst_errors(record)
    assert [base64.b64decode((values["src"] or "").split(",")[1]) for values in media] == [
        shown[row].content for row in ids
    ]
    assert all(values.get("alt") or values.get("aria-label") for values in media)
    assert kind != "audio" or all("controls" in values for values in media)


def test_long_texts_are_folded_and_rows_without_content_are_listed():
    record = records.single_label()
    ids = worst_errors(record)
    page = check(build_report(record, {ids[0]: Preview("word " * 400 + "END"), ids[1]: Preview("short & sweet")}))
    assert page.text.count("END") == 1 and "short & sweet" in page.text
    assert f"Full text of row {ids[0]} (2,003 characters)" in page.text
    assert all(f"Row {row}" in page.text for row in ids)


def compared(record: Any, *entries: dict[str, Any]) -> Any:
    split = {"split": "test"}
    return records.with_metrics(record, baseline=split | entries[0], baselines=[split | entry for entry in entries])


def entry(name: str, value: float, difference: float, p_value: float, **more: Any) -> dict[str, Any]:
    told = {"value": difference, "ci95": [difference - 0.02, difference + 0.02], "p_value": p_value}
    scores = {"accuracy": value, "accuracy_ci95": [value - 0.03, value + 0.03]}
    return {"name": name, "description": f"what {name} says", "metrics": scores, "difference": told, **more}


def test_all_baselines_are_compared_on_the_same_rows():
    record = records.single_label()
    value = record.metrics["test"]["accuracy"]
    found = [
        entry("majority class", 0.3, value - 0.3, 1e-9),
        entry("tf-idf", value - 0.01, 0.01, 0.4),
        entry("frozen probe", 0.99, value - 0.99, 1e-4),
        entry("zero-shot", 0.2, 0.5, 1e-9, num_examples=30, model={"accuracy": 0.7}),
    ]
    text = check(build_report(compared(record, *found), {})).text
    assert f"what majority class says: 30.0 %. The model is clearly better: {100 * (value - 0.3):.1f} points" in text
    assert "The model is not clearly different: 1.0 points better on the same rows, which may be chance" in text
    assert "what frozen probe says: 99.0 %. The model is clearly worse: " in text
    assert "what zero-shot says: 20.0 % (the model, on the same rows: 70.0 %). The model is clearly better" in text
    assert "clearly worse than what frozen probe says" in text and "from what tf-idf" not in text
    assert text.index("worse than what frozen probe") < text.index("Training")
    assert all(
        name in text for name in ("Most frequent label", "Words (TF-IDF)", "Frozen features", "Before fine-tuning")
    )


def test_speed_has_no_powers_and_one_length_no_square():
    record = records.single_label()
    record.metrics["train"]["examples_per_second"] = 6834.2
    for split in record.metrics["data"]["splits"].values():
        split["lengths"] = {
            "median": 64.0,
            "p95": 64.0,
            "max": 64.0,
            "histogram": {"edges": [63.5, 64.5], "counts": [500]},
        }
    page = check(build_report(record, {}))
    assert "6,834 rows/s" in page.text and "e+0" not in page.text
    assert page.text.count("500 rows of 64 tokens each.") == 3
    assert "Lengths of train rows" not in page.text


# --- the gallery -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "speech"])
def test_a_gallery_of_right_and_wrong_rows_the_least_confident_first(name):
    record = TASKS[name]()
    wanted = rows_to_show(record)
    errors = worst_errors(record)
    assert wanted[: len(errors)] == errors and len(set(wanted)) == len(wanted)
    shown = dict.fromkeys(wanted, next(iter(records.shown(record).values())))
    page = check(build_report(record, shown))
    tag = "img" if name == "image" else "audio"
    assert sum(element == tag for element, _ in page.elements) == len(wanted)
    confidence = {row["id"]: row["confidence"] for row in record.predictions}
    right = {row["id"] for row in record.predictions if row["reference"] == row["prediction"]}
    gallery = wanted[len(errors) :]
    for kind in ([row for row in gallery if row in right], [row for row in gallery if row not in right]):
        assert kind == sorted(kind, key=lambda row: (confidence[row], row))
    least = min(right, key=lambda row: (confidence[row], row))
    assert least in gallery and "Right, the least confident first" in page.text


def test_without_an_error_there_are_pictures_all_the_same():
    record = records.single_label(task="image_classification")
    rows = [row | {"prediction": row["reference"]} for row in record.predictions]
    record = replace(record, predictions=rows)
    assert worst_errors(record) == [] and len(rows_to_show(record)) == 12
    content = Preview("x.jpg", records.picture(), "image/jpeg")
    page = check(build_report(record, dict.fromkeys(rows_to_show(record), content)))
    assert "No errors in 200 rows" in page.text and "Wrong, the least" not in page.text
    assert sum(tag == "img" for tag, _ in page.elements) == 12


def test_a_gallery_stays_small():
    record = records.single_label(task="image_classification")
    content = Preview("x.jpg", b"x" * 400_000, "image/jpeg")
    html = build_report(record, dict.fromkeys(rows_to_show(record), content))
    assert len(html) < 6_000_000 and "too large for this page" in html


def test_texts_have_no_gallery():
    record = records.single_label()
    assert rows_to_show(record) == worst_errors(record)
    assert "Gallery" not in build_report(record, records.shown(record))


# --- worst errors ------------------------------------------------------------------------------------------------


def rows_record(rows: list[tuple[Any, Any, Any]], task: str = "text_classification") -> Any:
    record = records.single_label() if task != "speech_recognition" else records.speech()
    predictions = [
        {"id": index + 7, "reference": said, "prediction": answer, "confidence": confidence}
        for index, (said, answer, confidence) in enumerate(rows)
    ]
    return replace(record, predictions=predictions)


def test_worst_errors_are_the_most_confident_ones():
    rows = [
        ("a", "a", 1.0),
        ("a", "b", 0.5),
        ("a", "b", 0.9),
        ("b", "a", 0.9),
        ("a", "b", None),
        ("a", "b", float("nan")),
    ]
    record = rows_record(rows)
    assert worst_errors(record) == [9, 10, 8, 11, 12]
    assert worst_errors(record, limit=2) == [9, 10]
    assert worst_errors(rows_record([])) == []


def test_sets_of_labels_are_wrong_when_they_differ():
    assert worst_errors(rows_record([(["a", "b"], ["b", "a"], 0.9), (["a"], [], 0.3), ([], [], 0.8)])) == [8]


def test_transcripts_are_wrong_when_a_word_differs():
    rows = [("a  b", "a b", 0.9), ("a b", "a c", 0.5), ("a b", "A b", 0.6), ("a", "", 0.2)]
    assert worst_errors(rows_record(rows, "speech_recognition")) == [9, 8, 10]


def test_few_rows_and_a_single_answer_are_warned_of():
    record = rows_record([("a", "b", 0.4), ("b", "b", 0.5)])
    small = records.with_metrics(record, test={**record.metrics["test"], "num_examples": 20})
    text = check(build_report(small, {})).text
    assert "20 test rows only" in text and "The model gives the same answer, 'b', for every row" in text


def test_the_same_run_gives_the_same_page():
    for make in TASKS.values():
        shown = records.shown(make())
        assert build_report(make(), shown) == build_report(make(), shown)


# --- numbers and charts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.974, "97.4 %"), (1.0, "100.0 %"), (0.99996, "99.996 %"), (0.0002, "0.02 %"), (0, "0.0 %"), (1.31, "131.0 %")],
)
def test_percentages(value, wanted):
    assert numbers.percent(value).replace("\u00a0", " ") == wanted


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "x", True])
def test_what_is_no_number_is_a_dash(value):
    assert (
        numbers.percent(value) == numbers.decimal(value) == numbers.count(value) == numbers.duration(value) == "\u2013"
    )


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 652), (0.9, 0.98), (0, 1.5e-4), (-3, 17), (5, 5), (0, float("nan"))]
)
def test_ticks_are_few_round_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found) or not high > low


def test_a_thinned_line_keeps_its_extremes():
    points = [(float(step), float(step % 100)) for step in range(10_000)]
    points[4321] = (4321.0, 1e6)
    thinned = charts.thinned(points)
    assert len(thinned) <= charts.MOST_POINTS and (4321.0, 1e6) in thinned
    assert thinned == sorted(thinned)


def test_a_line_breaks_where_a_value_is_missing():
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, None), (4.0, 1.0), (5.0, 3.0)]
    drawn = charts.line_panel("title", "text", [charts.Line("loss", points)], (0.0, 5.0))
    assert drawn is not None and drawn.count("<polyline") == 2
    assert charts.line_panel("title", "text", [charts.Line("loss", [(1.0, None)])], (0.0, 5.0)) is None


def test_an_axis_of_percentages_ends_at_100_unless_a_value_is_higher():
    ends = {}
    for value in (0.993, 1.2):
        line = charts.Line("", [(1.0, value)])
        drawn = charts.line_panel("title", "text", [line], (0.0, 5.0), from_zero=False, y_format=numbers.axis_percent)
        ends[value] = max(float(mark) for mark in re.findall(r">(\d+)\s*%<", str(drawn)))
    assert ends[0.993] == 100 and ends[1.2] >= 120


def test_the_histogram_of_confidence_is_labelled_in_percent():
    drawn = sections.calibration(records.single_label())["histogram"]
    labels = re.findall(r'class="tick"[^>]*>([^<]+)<', drawn)
    assert labels[-6:] == [f"{part}\u00a0%" for part in (0, 20, 40, 60, 80, 100)]
