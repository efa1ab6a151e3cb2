"""Curves of a report: their areas by scikit-learn, few enough points, and what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from publishing.report import report_records as records
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from sft_hf.core.run.outputs import SplitOutputs
from sft_hf.publishing.report import curves
from sft_hf.publishing.report.run_report import build_report


def classified(classes, rows=3000, seed=0, multi_label=False):
    """Outputs of a classifier that is often right."""
    generator = np.random.default_rng(seed)
    names = tuple(f"class {index}" for index in range(classes))
    if multi_label:
        references = (generator.random((rows, classes)) < 0.3).astype(np.uint8)
        logits = generator.normal(size=(rows, classes)) * 2 + 2.0 * references - 1
        kind = "multi_label_classification"
    else:
        references = generator.integers(classes, size=rows)
        logits = generator.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[references]
        kind = "single_label_classification"
    return SplitOutputs(
        "test", kind, np.arange(rows), names, temperature=1.3, logits=logits.astype(np.float32), references=references
    )


def area_below(points):
    x, y = np.array(points).T
    assert (np.diff(x) >= 0).all() and x.min() >= 0 and x.max() <= 1 and y.min() >= 0 and y.max() <= 1
    return auc(x, y)


@pytest.mark.parametrize(
    ("outputs", "drawn"),
    [
        (classified(2), 2),
        (classified(4), 5),
        (classified(9), 6),
        (classified(3, multi_label=True), 4),
        (classified(14, multi_label=True), 11),
    ],
)
def test_areas_are_those_of_scikit_learn(outputs, drawn):
    found = curves.label_curves(outputs)
    scores, names = outputs.probabilities(), list(outputs.labels)
    truth = outputs.references if outputs.multi_label else np.eye(len(names))[outputs.references]
    assert len(found) == drawn
    for curve in found:
        if curve.label in names:
            label = names.index(curve.label)
            assert curve.auc == roc_auc_score(truth[:, label], scores[:, label])
            assert curve.average_precision == average_precision_score(truth[:, label], scores[:, label])
            assert curve.support == truth[:, label].sum()
        else:
            average = "micro" if outputs.multi_label else "macro"
            assert curve.auc == pytest.approx(roc_auc_score(truth, scores, average=average), abs=1e-12)
            assert curve.average_precision == pytest.approx(
                average_precision_score(truth, scores, average=average), abs=1e-12
            )
        assert len(curve.roc) <= 200 and len(curve.precision) <= 200
        assert area_below(curve.roc) == pytest.approx(curve.auc, abs=0.01)  # what is drawn is what is said
        assert area_below(curve.precision) == pytest.approx(curve.average_precision, abs=0.02)


def test_the_worst_labels_are_drawn():
    outputs = classified(9)
    found = curves.label_curves(outputs)[1:]
    truth, scores = np.eye(9)[outputs.references], outputs.probabilities()
    every = sorted(average_precision_score(truth[:, label], scores[:, label]) for label in range(9))
    assert [curve.average_precision for curve in found] == every[:5]


def test_labels_that_no_row_has_are_left_out():
    outputs = classified(4, rows=60)
    kept = outputs.references < 3
    fewer = replace(
        outputs, row_id=outputs.row_id[kept], logits=outputs.logits[kept], references=outputs.references[kept]
    )
    found = curves.label_curves(fewer)
    assert {curve.label for curve in found} == {"mean of labels", "class 0", "class 1", "class 2"}
    one = fewer.references == 0
    assert (
        curves.label_curves(
            replace(fewer, row_id=fewer.row_id[one], logits=fewer.logits[one], references=fewer.references[one])
        )
        == []
    )
    assert curves.label_curves(replace(fewer, references=None)) == []


def test_thinned_keeps_both_ends_and_the_shape():
    x = np.linspace(0, 1, 10_001)
    y = np.minimum(1, 50 * x)
    found = curves.thinned(x, y)
    assert len(found) <= 200 and found[0] == (0, 0) and found[-1] == (1, 1)
    assert area_below(found) == pytest.approx(auc(x, y), abs=1e-4)


def test_risk_by_coverage_counts_rows_of_one_confidence_together():
    confidences = np.array([0.9, 0.5, 0.9, 0.7])
    right = np.array([True, False, False, True])
    points, area = curves.risk_by_coverage(confidences, right)
    assert points == [(0.5, 0.5), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]
    assert area == pytest.approx((0.5 + 0.5 + 1 / 3 + 0.5) / 4)


@pytest.mark.parametrize("rows", [1, 37, 5000])
def test_risk_by_coverage_is_what_is_left_wrong(rows):
    generator = np.random.default_rng(1)
    confidences = generator.random(rows)
    right = generator.random(rows) < confidences
    points, _ = curves.risk_by_coverage(confidences, right)
    assert len(points) <= 200 and points[-1] == (1.0, pytest.approx(1 - right.mean()))
    for share, risk in points:
        answered = confidences >= np.sort(confidences)[::-1][round(share * rows) - 1]
        assert risk == pytest.approx((~right[answered]).mean())


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [records.single_label, records.multi_label, lambda: records.single_label(["no", "yes"])]
)
def test_the_page_has_the_areas_as_a_table(make):
    record = make()
    page = records.check(build_report(record, {}))
    shown = records.table(page, "Label", "Rows", "ROC AUC")
    assert shown == [
        [row["label"], row["support"], row["auc"], row["average_precision"]] for row in curves.ranking(record)["rows"]
    ]
    described = [text for tag, text in page.texts if tag == "desc"]
    assert sum(shown[0][2] in text for text in described) >= 2  # for those who do not see the curves
    assert curves.coverage(record)["sentence"].replace("\u00a0", " ") in page.text


def test_a_page_without_outputs_has_no_curves():
    record = replace(records.single_label(), outputs=None)
    page = records.check(build_report(record, {}))
    assert not any("ROC" in text for _, text in page.texts)


def test_transcripts_have_errors_by_coverage_alone():
    record = records.speech()
    assert curves.ranking(record) is None
    page = records.check(build_report(record, {}))
    _, right = curves.confidence_and_correctness(record)
    assert len(right) == 40 and (~right).sum() == 8
    assert curves.coverage(record)["sentence"].replace("\u00a0", " ") in page.text


def test_where_a_run_abstains_is_marked():
    record = records.single_label()
    abstaining = replace(record, outputs=replace(record.outputs, abstention_threshold=0.9))
    confidences, _ = curves.confidence_and_correctness(record)
    share = f"{100 * (confidences >= 0.9).mean():.1f}"
    assert share in str(curves.coverage(abstaining)["chart"]) and "marked" not in str(curves.coverage(record)["chart"])


def test_what_is_left_out_is_said():
    record = records.single_label()
    assert "gone" in records.check(build_report(record, {}, "Two pictures are gone.")).text
