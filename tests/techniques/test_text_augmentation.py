"""Words left out, swapped and masked: how often, whole words, and the rows of a run."""

import numpy as np
import pytest

from sft_hf import loop
from sft_hf.run import finetune
from sft_hf.techniques.text_augmentation import rearranged, words_of


@pytest.mark.parametrize(
    ("tokens", "mark", "words"),
    [
        (["[CLS]", "un", "##like", "##ly", "so", "[SEP]"], "##", [[0], [1, 2, 3], [4], [5]]),
        (["<s>", "un", "likely", "Ġso", "</s>"], "Ġ", [[0], [1, 2], [3], [4]]),
        (["▁un", "likely", "▁so", "</s>"], "▁", [[0, 1], [2], [3]]),
        (["goal", "match"], "", [[0], [1]]),
    ],
)
def test_pieces_stay_with_their_word(tokens, mark, words):
    special = [token[0] in "[<" for token in tokens]
    assert words_of(tokens, special, mark) == words


def test_words_go_and_change_places_as_often_as_they_should():
    generator = np.random.default_rng(0)
    fixed = [True, *[False] * 40, True]
    gone = swapped = 0
    for _ in range(300):
        order = rearranged(fixed, 0.2, 0.0, generator)
        assert order == sorted(order) and order[0] == 0 and order[-1] == 41
        gone += 42 - len(order)
        order = rearranged(fixed, 0.0, 0.1, generator)
        assert sorted(order) == list(range(42)) and order[0] == 0 and order[-1] == 41
        moved = [place for place, word in enumerate(order) if place != word]
        assert all(order[a] == b and order[b] == a for a, b in zip(moved[::2], moved[1::2], strict=True))
        swapped += len(moved) // 2
    assert gone / (300 * 40) == pytest.approx(0.2, abs=0.015)
    assert swapped / (300 * 39) == pytest.approx(0.1 / 1.1, abs=0.01)  # after a swap, the next word has had its turn


def test_a_word_is_left():
    for seed in range(20):
        assert len(rearranged([True, False, False, True], 1.0, 0.0, np.random.default_rng(seed))) == 3


def test_a_run_sees_other_words_in_each_epoch(make_recipe, monkeypatch):
    seen = []
    plain = loop.train_step

    def watched(training, examples, window, state):
        row = window.rows()[0]
        seen.append((state.epoch, int(examples.row_ids[row]), examples.features[row]["input_ids"].tolist()))
        return plain(training, examples, window, state)

    monkeypatch.setattr(loop, "train_step", watched)
    techniques = [{"name": "text_augmentation", "deletion": 0.3, "swap": 0.3, "masking": 0.3}]
    finetune(make_recipe(techniques=techniques, train__per_device_train_batch_size=1, data__max_train_samples=4))
    epochs = [{row: ids for epoch, row, ids in seen if epoch == number} for number in (0, 1)]
    assert epochs[0].keys() == epochs[1].keys() and epochs[0] != epochs[1]
    for ids in (*epochs[0].values(), *epochs[1].values()):
        assert (ids[0], ids[-1]) == (2, 3) and len(ids) >= 3  # [CLS] and [SEP]
    assert any(4 in ids for ids in epochs[0].values())  # [MASK]
