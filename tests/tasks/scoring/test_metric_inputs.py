"""What metrics refuse to score."""

from __future__ import annotations

import pytest
from slow_metrics import MULTI, SINGLE

from sft_hf.tasks.scoring import classification as metrics


@pytest.mark.parametrize("metric", SINGLE)
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "N >= 1"),
        (None, None, "N >= 1"),
        ([0], None, "references must be"),
        ([0, 1], [0], "same shape"),
        ([[0, 1]], [[0, 1]], "N >= 1"),
        ([0.5], [0], "integer label indices, got float64"),
        (["a"], ["a"], "integer label indices"),
        ([True], [True], "integer label indices"),
        ([0], [-100], "label indices >= 0, got -100"),
    ],
)
def test_single_label_input_is_checked(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=message):
        metric().add_batch(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=message):
        metrics.single_label_metrics(predictions, references, ["a", "b"])


def test_label_indices_beyond_the_labels_are_refused():
    message = r"predictions must be label indices in \[0, 2\), got 2"
    with pytest.raises(ValueError, match=message):
        metrics.single_label_metrics([0, 2], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match=message):
        metrics.ConfusionMatrix().compute(predictions=[2], references=[0], num_labels=2)
    with pytest.raises(ValueError, match=message):
        metrics.PerClass().compute(predictions=[2], references=[0], label_names=["a", "b"])


@pytest.mark.parametrize(
    ("scores", "references", "message"),
    [
        ([], [], "N >= 1 and C >= 1"),
        ([0.5, 0.5], [0, 1], "N, C"),
        ([[0.5, 0.5]], [[1]], "same shape"),
        ([[0.5]], [[2]], "0 or 1"),
        ([[0.5]], [[-100]], "0 or 1"),
        ([[float("nan")]], [[1]], "finite"),
    ],
)
def test_multi_label_input_is_checked(scores, references, message):
    for metric in MULTI:
        with pytest.raises(ValueError, match="0 or 1|" + message):
            metric().compute(predictions=scores, references=references)
        with pytest.raises(ValueError, match="0 or 1|" + message):
            metric().add_batch(predictions=scores, references=references)
    with pytest.raises(ValueError, match=message):
        metrics.multi_label_metrics(scores, references, 0.5, ["a"])
    with pytest.raises(ValueError, match=message):
        metrics.choose_threshold(scores, references)


def test_scores_thresholds_and_names_are_checked():
    with pytest.raises(ValueError, match="1 label columns but 2 label names"):
        metrics.multi_label_metrics([[0.5]], [[1]], 0.5, ["a", "b"])
    for threshold in (0.0, 1.0, -1, 50, float("nan")):
        with pytest.raises(ValueError, match="threshold must be inside"):
            metrics.multi_label_metrics([[0.5]], [[1]], threshold, ["a"])
    for logit in (-0.1, 3.0):
        with pytest.raises(ValueError, match="probabilities in"):
            metrics.multi_label_metrics([[logit]], [[1]], 0.5, ["a"])
        with pytest.raises(ValueError, match="probabilities in"):
            metrics.choose_threshold([[logit]], [[1]])
    with pytest.raises(ValueError, match="metric must be"):
        metrics.choose_threshold([[0.5]], [[1]], "map")
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.MultiLabelF1().compute(predictions=[[0.7]], references=[[1]])
