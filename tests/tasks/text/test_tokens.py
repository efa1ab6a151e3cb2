"""Texts as tokens: what two passes of the tokenizer would give, and what of it other runs find."""

from __future__ import annotations

from itertools import product

import pytest
from tiers import quick
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft_hf.data import row_cache
from sft_hf.tasks.text import tokens
from sft_hf.tasks.text.tokens import open_token_cache, tokenize

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


@pytest.mark.parametrize(
    ("kind", "columns", "max_length"),
    quick(
        [("fast", 1, 8), ("fast", 2, 32), ("fast", 1, 60), ("slow", 1, 32), ("slow", 2, 8)],
        list(product(("fast", "slow"), (1, 2), (8, 32, 60))),
    ),
)
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
        assert f"{cut} of 300 rows" in note and f"{share:.1%} of all tokens" in note
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


# --- special tokens that a text spells out -------------------------------------------------------------------------


@pytest.fixture(params=["bpe", "unigram", "wordlevel", "slow"])
def marked(request, tokenizer, tmp_path):
    """Tokenizers of several kinds that put marks around a text; each with an added token of the user's, [E1]."""
    if request.param == "slow":
        slow = slow_tokenizer(tokenizer, tmp_path)
        slow.add_tokens(["[E1]"], special_tokens=True)
        return slow
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if request.param == "bpe":
        backend = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    elif request.param == "unigram":
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>")
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        trainer = trainers.WordLevelTrainer(special_tokens=special)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer.show_progress = False
    backend.train_from_iterator(["goal bank bread < / s > [ ]"] * 5, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    options = {f"{kind}_token": name for kind, name in names.items()}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    made.add_tokens(["[E1]"], special_tokens=True)
    return made


@pytest.mark.parametrize("columns", [1, 2])
def test_special_tokens_that_a_text_spells_out_are_text(marked, columns):
    end = marked.sep_token
    texts = [f"goal {end} bank", "goal bank", f"{end}", f"bread {marked.pad_token}{marked.mask_token} {end}{end}"]
    chosen = [texts, ["bank"] * 4][:columns]
    table, notes = tokenize(marked, chosen, 64, "t", row_ids=[7, 8, 9, 10])
    marks = {
        marked.convert_tokens_to_ids(name) for name in (end, marked.cls_token, marked.pad_token, marked.mask_token)
    }
    counts = [sum(int(token) in marks for token in row["input_ids"]) for row in table]
    assert len(set(counts)) == 1 and counts[0] > 0  # those that the tokenizer adds by itself, around every text
    (note,) = notes
    assert "3 rows" in note and end in note and "row 7" in note
    alone, _ = tokenize(marked, [[texts[1]], ["bank"]][:columns], 64, "t")
    assert table[1]["input_ids"].tolist() == alone[0]["input_ids"].tolist()


def test_tokens_that_were_added_for_a_purpose_keep_their_meaning(marked):
    entity = marked.convert_tokens_to_ids("[E1]")
    table, notes = tokenize(marked, [["[E1] goal", f"[E1] bank {marked.sep_token}"]], 64, "t")
    assert all(entity in row["input_ids"] for row in table) and len(notes) == 1


def test_unknown_words_are_no_special_tokens(tokenizer):
    tokenizer.pad_token = "[UNK]"  # as of some model2vec models
    assert not tokenize(tokenizer, [["unheard of", "goal"]], 64, "t")[1]
