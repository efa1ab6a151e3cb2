"""The page that compares runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from publishing.report import report_records as records

from sft_hf.errors import UserError
from sft_hf.publishing.report.comparison import build_comparison

check, table = records.check, records.table


def scored(name: str, value: float, width: float = 0.01, **changes: Any) -> Any:
    record = records.single_label()
    test = {**record.metrics["test"], "accuracy": value, "accuracy_ci95": [value - width, value + width]}
    record = records.with_metrics(record, test=test)
    return replace(record, name=name, recipe=records.recipe("text_classification", **changes))


def test_a_clear_winner_is_named():
    page = check(build_comparison([scored("slow", 0.80), scored("fast", 0.95, seed=7), scored("old", 0.5)]))
    assert "fast (1) is clearly best" in page.text
    runs = table(page, "Run", "Accuracy")
    assert [row[:3] for row in runs] == [
        ["1. fast", "95.0 %", "94.0 % to 96.0 %"],
        ["2. slow", "80.0 %", "79.0 % to 81.0 %"],
        ["3. old", "50.0 %", "49.0 % to 51.0 %"],
    ]
    assert table(page, "Key") == [["seed", "7", "42", "42"]]
    assert table(page, "Run", "Steps")[0] == [
        "1. fast",
        "60",
        "5 min 18 s",
        "34.3",
        "2.0 GB",
        "22,716,296",
        "22,716,296",
    ]


def test_overlapping_intervals_have_no_winner():
    html = build_comparison([scored("a", 0.90), scored("b", 0.905), scored("c", 0.5)])
    page = check(html)
    assert (
        "No clear winner: b (1) scores best, but its 95 % interval overlaps with that of a (2). Clearly behind: c (3)."
        in (page.text)
    )
    best = [values for tag, values in page.elements if tag == "tr" and values.get("class") == "best"]
    assert len(best) == 2
    assert "Nothing: the recipes are the same." in page.text


def test_lower_word_error_rates_win():
    good = records.speech()
    bad = records.with_metrics(good, test={**good.metrics["test"], "wer": 0.7, "wer_ci95": [0.6, 0.8]})
    page = check(build_comparison([replace(bad, name="bad"), replace(good, name="good")]))
    assert "good (1) is clearly best" in page.text and "lower is better" in page.text


@pytest.mark.parametrize("count", [2, 12, 30])
def test_any_number_of_runs(count):
    page = check(build_comparison([scored(f"run {index}", 0.5 + index / 100) for index in range(count)]))
    assert len(table(page, "Run", "Accuracy")) == count
    assert ("The 12 best runs" in page.text) == (count > 12)


def test_runs_that_cannot_be_compared_are_refused():
    text = records.single_label()
    with pytest.raises(UserError, match="two runs or more") as caught:
        build_comparison([text])
    assert caught.value.exit_code == 2
    with pytest.raises(
        UserError, match=r"^dictation: its task is speech_recognition, and that of reviews is text_class"
    ):
        build_comparison([text, records.speech()])
    with pytest.raises(UserError, match=r"^topics: its primary metric is micro_f1, and that of reviews is accuracy"):
        build_comparison([text, records.multi_label()])


def test_different_data_are_warned_of():
    other = scored("b", 0.9, data={"name": "org/other"})
    assert "different data (org/other, reviews)" in check(build_comparison([scored("a", 0.8), other])).text
    assert (
        "some on validation"
        in check(
            build_comparison([scored("a", 0.8), records.with_metrics(scored("b", 0.9), test=None, baseline=None)])
        ).text
    )
