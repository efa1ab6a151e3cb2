"""Texts as tokens: what two passes of the tokenizer would give, and what of it other runs find."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from sft_hf.data import row_cache, tokens
from sft_hf.data.tokens import open_token_cache, tokenize

PAIRS = [["ab", "c d"], ["e", ""]]


@pytest.fixture
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def all_is_kept(own_cache, monkeypatch):
    """A cache that takes the smallest things, too."""
    monkeypatch.setattr(row_cache, "WORTH_BYTES", 1)
    return own_cache


def slow_tokenizer(fast, folder):
    """A tokenizer without Rust that splits as the tiny checkpoint's does."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    path = folder / "vocab.txt"
    vocabulary = fast.get_vocab()
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    return BertTokenizerLegacy(str(path), model_max_length=64)


@pytest.mark.parametrize("kind", ["fast", "slow"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("max_length", [8, 32, 60])
def test_tokens_and_what_was_cut_of_them_are_those_of_two_passes(tokenizer, texts, tmp_path, kind, columns, max_length):
    if kind == "slow":
        tokenizer = slow_tokenizer(tokenizer, tmp_path)
        assert not tokenizer.is_fast
    chosen = [texts, texts[::-1]][:columns]
    options = {"return_attention_mask": False, "verbose": False}
    whole = tokenizer(*chosen, truncation=False, **options)
    expected = tokenizer(*chosen, truncation=True, max_length=max_length, **options)
    lost = [len(a) - len(b) for a, b in zip(whole["input_ids"], expected["input_ids"], strict=True)]
    table, notes = tokenize(tokenizer, chosen, max_length, "texts.csv")
    for index, row in enumerate(table):
        assert {name: values.tolist() for name, values in row.items()} == {name: expected[name][index] for name in row}
    assert set(row) == set(expected)
    cut = sum(number > 0 for number in lost)
    assert 0 < cut < 300 or max_length != 32
    share = sum(lost) / sum(map(len, whole["input_ids"]))
    if cut:
        (note,) = notes
        assert f"{cut} of 300 rows" in note and f"{share:.1%} of all tokens lost" in note
    else:
        assert not notes


def test_only_a_text_that_is_cut_is_tokenized_twice(tokenizer, texts):
    read = []

    def counted(batch, **options):
        read.extend(batch)
        return tokenizer(batch, **options)

    _, lost, _ = tokens._encode(counted, [texts], 32, tokens.SpecialTokens(tokenizer, pairs=False))
    assert len(read) == 300 + int((lost > 0).sum()) < 600


@pytest.mark.parametrize("columns", [1, 2])
def test_the_next_run_finds_the_tokens_of_the_same_texts(tokenizer, texts, all_is_kept, monkeypatch, columns):
    chosen = [texts, texts[::-1]][:columns]
    made, notes = tokenize(tokenizer, chosen, 32, "a", cache=open_token_cache(tokenizer, 32, 1.0))
    monkeypatch.setattr(tokens, "_encode", None)
    tokenizer("what was asked for last", truncation=True, max_length=5, padding="max_length")
    labels = list(range(300))
    found, again = tokenize(tokenizer, chosen, 32, "a", labels, open_token_cache(tokenizer, 32, 1.0))
    assert again == notes != []
    assert len(found) == 300
    for index, row in enumerate(found):
        assert row.pop("labels") == index
        assert {name: values.tolist() for name, values in row.items()} == {
            name: values.tolist() for name, values in made[index].items()
        }


def test_other_texts_and_other_pairs_are_made_anew(tokenizer, all_is_kept, monkeypatch):
    cache = open_token_cache(tokenizer, 32, 1.0)
    tokenize(tokenizer, PAIRS, 32, "a", cache=cache)
    monkeypatch.setattr(tokens, "_encode", None)
    tokenize(tokenizer, PAIRS, 32, "a", cache=cache)
    for other in (PAIRS[:1], [["a", "bc d"], ["e", ""]], [["ab", "c d"], ["", "e"]], [["ab", "c d", "e", ""]]):
        with pytest.raises(TypeError):
            tokenize(tokenizer, other, 32, "a", cache=cache)


def test_other_tokenizers_and_lengths_have_other_tokens(tokenizer, all_is_kept, tmp_path):
    tokenize(tokenizer, PAIRS, 32, "a", cache=open_token_cache(tokenizer, 32, 1.0))
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["ab"])
    for cache in (open_token_cache(tokenizer, 31, 1.0), open_token_cache(other, 32, 1.0)):
        assert cache.find(tokens._digest(PAIRS)) is None
    assert open_token_cache(tokenizer, 32, 1.0).find(tokens._digest(PAIRS)) is not None
    assert open_token_cache(slow_tokenizer(tokenizer, tmp_path), 32, 1.0) is None
