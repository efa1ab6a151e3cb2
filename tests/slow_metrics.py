"""Metrics and their bootstrap by slow code that takes another way, and data to compare them on."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from sft_hf.tasks.scoring import classification as metrics
from sft_hf.tasks.scoring import intervals as bootstrap

SINGLE = [metrics.Accuracy, metrics.MacroF1, metrics.ConfusionMatrix, metrics.PerClass]
MULTI = [metrics.MultiLabelF1, metrics.MeanAveragePrecision]


def slow_f1(predicted, true):
    """F1 of two lists of booleans, exactly."""
    pairs = list(zip(predicted, true, strict=True))
    both = sum(1 for p, t in pairs if p and t)
    wrong = sum(1 for p, t in pairs if bool(p) != bool(t))
    return Fraction(2 * both, 2 * both + wrong) if both + wrong else Fraction(0)


def slow_macro_f1(predictions, references):
    classes = sorted(set(predictions) | set(references))
    return float(
        sum(slow_f1([p == c for p in predictions], [r == c for r in references]) for c in classes) / len(classes)
    )


def slow_multi_f1(predictions, references):
    columns = list(zip(zip(*predictions, strict=True), zip(*references, strict=True), strict=True))
    micro = slow_f1([p for row in predictions for p in row], [r for row in references for r in row])
    macro = sum(slow_f1(p, t) for p, t in columns) / len(columns)
    return float(micro), float(macro)


def slow_average_precision(scores, true):
    """Sum of precision at each distinct score times the recall gained there: ties enter together."""
    total, value, before = sum(true), 0.0, 0
    for cut in sorted(set(scores), reverse=True):
        taken = [t for s, t in zip(scores, true, strict=True) if s >= cut]
        value += (sum(taken) - before) / total * (sum(taken) / len(taken))
        before = sum(taken)
    return value


def slow_interval(statistic, num_rows, samples, seed):
    """Row by row: the 2.5 % and 97.5 % points of the sorted values, interpolated linearly."""
    values = []
    for chunk in bootstrap.resample_indices(num_rows, samples=samples, seed=seed):
        values.extend(statistic(list(line)) for line in chunk)
    values.sort()

    def point(share):
        place = share * (len(values) - 1)
        low, high = math.floor(place), math.ceil(place)
        return values[low] + (values[high] - values[low]) * (place - low)

    return [point(0.025), point(0.975)]


def single_data(rows=40, labels=5, seed=1):
    generator = np.random.default_rng(seed)
    references = generator.integers(0, labels, rows)
    predictions = np.where(generator.random(rows) < 0.6, references, generator.integers(0, labels, rows))
    return predictions, references


def multi_data(rows=30, labels=4, seed=2):
    generator = np.random.default_rng(seed)
    references = (generator.random((rows, labels)) < 0.3).astype(int)
    scores = 0.4 * references + 0.6 * generator.random((rows, labels))
    return scores.round(2), references  # rounded, so that scores tie
