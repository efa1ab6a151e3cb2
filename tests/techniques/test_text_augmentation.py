"""Words left out, swapped and masked: how often, whole words, and the rows of a run."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import BertTokenizerFast

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.jobs.finetune import finetune
from sft_hf.techniques.regularization.settings import TextAugmentationSettings
from sft_hf.techniques.regularization.text_augmentation import TextAugmentation, rearranged

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] un ##play ##able good team won , match".split()


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizerFast(vocab={piece: index for index, piece in enumerate(PIECES)})


def changed(tokenizer, texts, seed, **settings):
    """A row of a text or two, as the technique changes it; and its tokens."""
    settings = TextAugmentationSettings(**{"deletion": 0.0, "swap": 0.0, "masking": 0.0, **settings})
    technique = TextAugmentation(settings, SimpleNamespace(task=SimpleNamespace(tokenizer=tokenizer)))
    encoded = tokenizer(*texts, return_attention_mask=False)
    row = {name: np.asarray(values, dtype=np.int32) for name, values in encoded.items()} | {"labels": 2}
    before = row["input_ids"].copy()
    after = technique.change_row(row, np.random.default_rng(seed))
    assert (row["input_ids"] == before).all() and after["labels"] == 2
    return after, " ".join(tokenizer.convert_ids_to_tokens(after["input_ids"].tolist()))


def test_words_go_and_change_places_as_often_as_they_should():
    generator = np.random.default_rng(0)
    gone = swapped = 0
    for _ in range(300):
        order = rearranged(40, 0.2, 0.0, generator)
        assert order == sorted(order)
        gone += 40 - len(order)
        order = rearranged(40, 0.0, 0.1, generator)
        assert sorted(order) == list(range(40))
        moved = [place for place, word in enumerate(order) if place != word]
        assert all(order[a] == b and order[b] == a for a, b in zip(moved[::2], moved[1::2], strict=True))
        swapped += len(moved) // 2
    assert gone / (300 * 40) == pytest.approx(0.2, abs=0.015)
    assert swapped / (300 * 39) == pytest.approx(0.1 / 1.1, abs=0.01)  # after a swap, the next word has had its turn


def test_a_word_is_left():
    left = [rearranged(3, 1.0, 0.0, np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(words) for words in left} == {(0,), (1,), (2,)}


def test_words_move_with_all_of_their_pieces_and_special_tokens_stay(tokenizer):
    assert changed(tokenizer, ["good unplayable team"], 0, swap=1.0)[1] == "[CLS] un ##play ##able good team [SEP]"
    assert changed(tokenizer, [""], 0, deletion=1.0)[1] == "[CLS] [SEP]"


def test_no_word_of_a_pair_goes_over_to_the_other_text_and_neither_is_emptied(tokenizer):
    seen = set()
    for seed in range(60):
        row, tokens = changed(tokenizer, ["good team", "unplayable , match"], seed, swap=0.5, deletion=0.6)
        first, second = tokens.removeprefix("[CLS] ").removesuffix(" [SEP]").split(" [SEP] ")
        assert first in ("good team", "team good", "good", "team")
        assert second and set(second.replace("un ##play ##able", "X").split()) <= {"X", ",", "match"}
        assert row["token_type_ids"].tolist() == [0] * (len(first.split()) + 2) + [1] * (len(second.split()) + 1)
        seen.add(tokens)
    assert len(seen) > 10


def test_masked_words_are_masked_whole_unknown_ones_too(tokenizer):
    found = {changed(tokenizer, ["unplayable strange team"], seed, masking=0.5)[1] for seed in range(80)}
    choices = ("un ##play ##able", "[MASK] [MASK] [MASK]"), ("[UNK]", "[MASK]"), ("team", "[MASK]")
    assert found == {f"[CLS] {' '.join(words)} [SEP]" for words in product(*choices)}


def test_without_a_token_for_masked_words_there_is_an_error():
    nothing = SimpleNamespace(task=SimpleNamespace(tokenizer=SimpleNamespace(mask_token_id=None, unk_token_id=None)))
    with pytest.raises(RecipeError, match="masking: the tokenizer has no mask or unknown token"):
        TextAugmentation(TextAugmentationSettings(masking=0.1), nothing)


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
