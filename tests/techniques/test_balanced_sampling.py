"""Balanced sampling: how often each label comes, that rows vary, and the rows of a run."""

import json
from collections import Counter

import numpy as np
import pytest
from small_runs import briefly
from tiers import long

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.techniques.labels.balanced_sampling import rarest_labels, sampled

LABELS = [0] * 60 + [1] * 30 + [2] * 10


def shares(strength, seed=0):
    rarest, counts = rarest_labels(LABELS)
    rows = sampled(rarest, counts, strength, np.random.default_rng(seed))
    assert len(rows) == len(LABELS)
    return Counter(LABELS[row] for row in rows), rows


def test_each_label_comes_as_often_as_it_should():
    assert shares(0.0)[0] == {0: 60, 1: 30, 2: 10} and shares(0.0)[1].tolist() == list(range(100))
    assert all(count in (33, 34) for count in shares(1.0)[0].values())
    root = np.sqrt([60, 30, 10])
    wanted = 100 * root / root.sum()
    assert all(abs(shares(0.5)[0][label] - wanted[label]) < 1 for label in range(3))


def test_no_row_of_a_rare_label_is_left_out_and_those_of_frequent_ones_take_turns():
    first, second = shares(1.0, seed=1)[1], shares(1.0, seed=2)[1]
    assert set(range(90, 100)) <= set(first.tolist())
    frequent = [{row for row in rows.tolist() if row < 60} for rows in (first, second)]
    assert frequent[0] != frequent[1] and all(len(rows) >= 33 for rows in frequent)
    assert np.array_equal(first, shares(1.0, seed=1)[1])


def test_a_row_with_several_labels_is_as_rare_as_its_rarest():
    rarest, counts = rarest_labels([[0], [0, 1], [0], []])
    assert rarest.tolist() == [0, 1, 0, 2] and counts.tolist() == [3, 1, 1]


@pytest.mark.parametrize("techniques", [[], ["balanced_sampling"]])
@pytest.mark.parametrize("multi_label", [False, long(True)], ids=["single", "multi"])
def test_a_run_sees_them(techniques, multi_label, make_recipe, tmp_path, monkeypatch):
    names = ["sport"] * 24 + ["money"] * 8
    rows = [
        {
            "text": f"{'goal match' if name == 'sport' else 'bank rate'} {'the ' * (i % 5)}",
            "label": name if not multi_label else sorted({name, "sport"}),  # every row is of sport, some of both
        }
        for i, name in enumerate(names)
    ]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = Counter()
    plain = loop.train_step

    def watched(training, examples, window, state):
        seen.update(names[int(examples.row_ids[row])] for row in window.rows())
        return plain(training, examples, window, state)

    monkeypatch.setattr(loop, "train_step", watched)
    briefly(make_recipe(data__name=str(tmp_path), techniques=techniques, train__num_train_epochs=1))
    assert seen.total() == 32
    if not techniques:
        assert seen["money"] == 8
    elif multi_label:  # 8 rows of both weigh 1/8 each, and the 24 others 1/32, for sport has 32 rows
        assert abs(seen["money"] - 32 * 1 / (1 + 24 / 32)) < 1
    else:
        assert seen["money"] == 16


def test_a_stream_cannot_be_sampled(make_recipe):
    stream = {
        "data__streaming": True,
        "data__label_names": ["sport", "money", "food"],
        "data__validation_fraction": 0,
        "train__max_steps": 2,
    }
    with pytest.raises(RecipeError, match="balanced_sampling needs training rows with labels that can be counted"):
        briefly(make_recipe(techniques=["balanced_sampling"], **stream))


@pytest.mark.parametrize("other", ["logit_adjustment", "class_weights"])
def test_rare_labels_are_made_up_for_once(make_recipe, other):
    with pytest.raises(RecipeError, match=f"balanced_sampling and {other} both"):
        make_recipe(techniques=["balanced_sampling", other])
