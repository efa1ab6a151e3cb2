"""The page that compares runs."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import pytest
from publishing.report import report_records as records

from sft_hf.core.errors import UserError
from sft_hf.publishing.report.comparison import build_comparison

check, table = records.check, records.table


def scored(name: str, value: float, width: float = 0.01, **changes: Any) -> Any:
    """A run that is right in the first rows of 200, so that a better one is right wherever a worse one is."""
    record = records.single_label()
    test = {**record.metrics["test"], "accuracy": value, "accuracy_ci95": [value - width, value + width]}
    record = records.with_metrics(record, test=test)
    predictions = [
        {**row, "prediction": row["reference"] if index < round(200 * value) else "another"}
        for index, row in enumerate(record.predictions)
    ]
    changed = records.recipe("text_classification", **changes)
    return replace(record, name=name, recipe=changed, predictions=predictions)


def mcnemar(only_first: int, only_second: int) -> float:
    tosses = only_first + only_second
    tail = sum(comb(tosses, heads) for heads in range(min(only_first, only_second) + 1)) / 2**tosses
    return min(1.0, 2 * tail)


def test_a_clear_winner_is_named():
    page = check(build_comparison([scored("slow", 0.80), scored("fast", 0.95, seed=7), scored("old", 0.5)]))
    assert "fast (1) is clearly best: better than every other on the same rows" in page.text
    assert "McNemar's exact test on the same 200 rows" in page.text and "2 comparisons by Holm's method" in page.text
    runs = table(page, "Run", "Accuracy")
    assert [row[:3] for row in runs] == [
        ["1. fast", "95.0 %", "94.0 % to 96.0 %"],
        ["2. slow", "80.0 %", "79.0 % to 81.0 %"],
        ["3. old", "50.0 %", "49.0 % to 51.0 %"],
    ]
    assert (
        runs[0][3] == "the best" and runs[1][3].startswith("-15.0 points (-20.0 to -10.") and "p < 0.001" in runs[1][3]
    )
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


def test_overlapping_intervals_are_no_test():
    """Right wherever the other is, and in 16 rows of 200 more: clearly better, although the intervals overlap."""
    page = check(build_comparison([scored("a", 0.82, 0.06), scored("b", 0.9, 0.06)]))
    assert "b (1) is clearly best" in page.text
    assert mcnemar(16, 0) < 0.001 and "p < 0.001" in table(page, "Run", "Accuracy")[1][3]


def test_what_a_test_does_not_tell_apart_has_no_winner():
    page = check(build_comparison([scored("a", 0.90), scored("b", 0.915), scored("c", 0.5)]))
    assert (
        "No clear winner: b (1) scores best, but does not differ significantly from a (2). Clearly behind: c (3)."
        in page.text
    )
    best = [values for tag, values in page.elements if tag == "tr" and values.get("class") == "best"]
    assert len(best) == 2
    assert mcnemar(3, 0) == 0.25 and "p = 0.25" in table(page, "Run", "Accuracy")[1][3]  # the larger of two: as it is
    assert "The recipes are the same." in page.text


def test_many_comparisons_are_corrected():
    """Six rows more have p = 0.031, which is enough for one comparison, and not for three."""
    assert mcnemar(6, 0) == 0.03125
    page = check(build_comparison([scored("a", 0.87), scored("b", 0.9)]))
    assert "b (1) is clearly best" in page.text
    several = [scored(name, value) for name, value in (("b", 0.9), ("a", 0.87), ("c", 0.87), ("d", 0.87))]
    page = check(build_comparison(several))
    assert "No clear winner" in page.text and "p = 0.094" in table(page, "Run", "Accuracy")[1][3]


@pytest.mark.parametrize("change", ["ids", "references", "fewer", "split", "text", "nothing"])
def test_other_rows_are_not_compared(change):
    one, other = scored("a", 0.9), scored("b", 0.5)
    rows = [dict(row) for row in other.predictions]
    if change == "ids":
        rows = [row | {"id": row["id"] + 1} for row in rows]
    elif change == "references":
        rows[7]["reference"] = "another label"
    elif change == "fewer":
        rows = rows[:150]
    elif change == "text":
        one = replace(one, predictions=[row | {"text": "this"} for row in one.predictions])
        rows = [row | {"text": "that"} for row in rows]
    elif change == "nothing":
        rows = []
    other = replace(other, predictions=rows)
    if change == "split":
        other = records.with_metrics(other, test=None, baseline=None)
        other.metrics["validation"] = {**other.metrics["validation"], "accuracy": 0.5}
    page = check(build_comparison([one, other]))
    assert "a (1) has the best score; the runs were not scored on the same rows" in page.text
    assert table(page, "Run", "Accuracy")[1][3] == "other rows" and "clearly" not in page.text
    third = check(build_comparison([one, other, scored("c", 0.6) if change != "text" else replace(one, name="c")])).text
    assert "Not compared: b" in third


def test_a_metric_without_a_paired_test_has_no_winner():
    runs = [scored("a", 0.9), scored("b", 0.2)]
    for run in runs:
        run.metrics["primary_metric"] = "map"
        run.metrics["test"]["map"] = run.metrics["test"]["accuracy"]
    page = check(build_comparison(runs))
    assert "there is no paired test of this metric" in page.text


def test_lower_word_error_rates_win():
    good = records.speech()
    bad = records.with_metrics(good, test={**good.metrics["test"], "wer": 0.7, "wer_ci95": [0.6, 0.8]})
    worse = [{**row, "prediction": "freeze the"} for row in good.predictions]
    page = check(build_comparison([replace(bad, name="bad", predictions=worse), replace(good, name="good")]))
    assert "good (1) is clearly best" in page.text and "lower is better" in page.text
    assert "paired bootstrap" in page.text and "p < 0.001" in table(page, "Run", "Word error rate")[1][3]


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
