"""Class weights: the paper's numbers, their mean over the rows, and the loss of a run by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tiers import long
from torch.nn import functional

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.labels.class_weights import effective_number, inverse_frequency, normalized
from sft_hf.techniques.labels.settings import ClassWeightsSettings

LABELS = ["sport"] * 5 + ["money"] * 2 + ["food"]


def test_the_effective_number_is_a_geometric_series():
    for count in (1, 2, 7, 50):
        series = sum(0.9**power for power in range(count))  # proposition 1: E_n = sum of b^i
        assert effective_number(np.array([count]), 0.9)[0] == pytest.approx(1 / series)
    assert effective_number(np.array([1, 9, 0]), 0.0).tolist() == [1, 1, 1]


def test_weights_have_mean_one_over_the_rows():
    counts = np.array([5, 2, 1])
    weights = normalized(inverse_frequency(counts), counts)
    assert (weights * counts).sum() == pytest.approx(8)
    assert (weights * counts).tolist() == pytest.approx([8 / 3] * 3)  # every label counts the same in sum


@pytest.mark.parametrize("own", [long(None), {"food": 4.0}])
def test_a_run_trains_on_it(first_step, own):
    loss, logits, names = first_step([{"name": "class_weights", "weights": own}], LABELS)
    raw = {"sport": 1 / 5, "money": 1 / 2, "food": 1.0} if own is None else {"sport": 1.0, "money": 1.0, "food": 4.0}
    scale = len(LABELS) / sum(raw[label] for label in LABELS)
    rows = [
        scale * raw[label] * (math.log(sum(map(math.exp, values))) - values[names.index(label)])
        for values, label in zip(logits.tolist(), LABELS, strict=True)
    ]
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


def test_with_label_smoothing_it_is_torchs(first_step):
    smoothing = {"name": "label_smoothing", "smoothing": 0.2}
    loss, logits, names = first_step([smoothing, "class_weights"], LABELS)
    counts = torch.tensor([float(LABELS.count(name)) for name in names])
    weights = 8 / 3 / counts  # mean 1 over the rows
    targets = torch.tensor([names.index(label) for label in LABELS])
    options = {"reduction": "none", "label_smoothing": 0.2}
    rows = functional.cross_entropy(torch.from_numpy(logits).float(), targets, weights, **options)
    assert loss == pytest.approx(rows.mean().item(), rel=1e-4)


def test_mistakes_are_told(first_step):
    with pytest.raises(RecipeError, match="no label is called 'fod'; did you mean food"):
        first_step([{"name": "class_weights", "weights": {"fod": 2.0}}], LABELS)
    with pytest.raises(RecipeError, match="all training rows have weight 0"):
        first_step([{"name": "class_weights", "weights": dict.fromkeys(LABELS, 0.0)}], LABELS)
    with pytest.raises(RecipeError, match=r"class_weights: weights\.food: .*greater than or equal to 0"):
        first_step([{"name": "class_weights", "weights": {"food": -1.0}}], LABELS)
    with pytest.raises(RecipeError, match=r"class_weights does not support this model: .*focal_loss"):
        first_step(["class_weights"], [["sport"], ["money", "food"], []])


def test_inverse_frequency_is_scikit_learns_balanced():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    counts = np.bincount(labels)
    np.testing.assert_allclose(normalized(inverse_frequency(counts), counts), expected)


def test_labels_that_yaml_takes_for_something_else():
    assert ClassWeightsSettings(weights={0: 1, True: 2, "no": 3}).weights == {"0": 1, "true": 2, "no": 3}
