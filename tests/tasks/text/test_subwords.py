"""Vocabularies: what is a word in each kind of them, and which tokens spell the same as two others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from sft_hf.tasks.text.subwords import Subwords
from sft_hf.tasks.text.word_embeddings import word_tokenizer

TEXTS = ["the player was playing with the team", "players play a match", "a team of players won the match again"]
SPECIAL = {"special_tokens": ["<pad>", "</s>", "<unk>"], "show_progress": False}


def tokenizer_of(model, pre_tokenizer, trainer=None):
    """A tokenizer on a model, which may learn its vocabulary from the texts above."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if trainer is not None:
        backend.train_from_iterator(TEXTS * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def byte_bpe():
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **SPECIAL)
    return tokenizer_of(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer)


def unigram():
    characters = sorted({"▁", *"".join(TEXTS).replace(" ", "")})
    words = ["▁play", "play", "ers", "er", "ing", "▁the", "the", "▁team", "team", "s", "▁match", "mat", "ch", "▁won"]
    scores = [(piece, -3.0 if len(piece) > 1 else -9.0) for piece in dict.fromkeys([*words, *characters])]
    model = models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores], unk_id=2)
    return tokenizer_of(model, pre_tokenizers.Metaspace())


def character_bpe():
    trainer = trainers.BpeTrainer(vocab_size=90, end_of_word_suffix="</w>", **SPECIAL)
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    return tokenizer_of(model, pre_tokenizers.Whitespace(), trainer)


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=90, **SPECIAL)
    return tokenizer_of(models.WordPiece(unk_token="<unk>"), pre_tokenizers.Whitespace(), trainer)


def spelled(names):
    """What tokens say, in any of these ways of marking words."""
    return " ".join(names).replace(" ##", "") if any(name.startswith("##") for name in names) else read(names)


def read(names):
    return "".join(name.replace("</w>", " ").replace("Ġ", " ").replace("▁", " ") for name in names)


@pytest.mark.parametrize("make", [byte_bpe, unigram, character_bpe, word_piece])
def test_of_real_tokenizers_words_are_the_texts_and_two_tokens_say_what_the_one_says(make):
    tokenizer = make()
    subwords = Subwords(tokenizer)
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    split = 0
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        (words,) = subwords.texts(ids)
        assert [spelled([names[ids[place]] for place in word]).strip() for word in words] == text.split()
        for token in ids:
            for left, right in subwords.splits(token):
                alone = names[token].startswith("##")
                said = (
                    names[left] + names[right].removeprefix("##") if make is word_piece else names[left] + names[right]
                )
                assert said == names[token] and (make is not word_piece or names[right].startswith("##"))
                assert make is not word_piece or names[left].startswith("##") == alone
                split += 1
    assert split > 10


def test_the_splits_of_a_word_piece_are_all_there_are():
    pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] playing play ##ing ##in ##g ##i ##n p ##laying ##lay team".split()
    subwords = Subwords(BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}))

    def by_trying_all(name):
        body = name.removeprefix("##")
        return {
            (left, right)
            for left in pieces[5:]
            for right in pieces[5:]
            if right.startswith("##") and left.startswith("##") == name.startswith("##")
            if left.removeprefix("##") + right.removeprefix("##") == body
        }

    for token, name in enumerate(pieces):
        found = {(pieces[left], pieces[right]) for left, right in subwords.splits(token)}
        assert found == (by_trying_all(name) if token > 4 else set()), name
    assert len(subwords.splits(pieces.index("playing"))) == 2


def fake(names, special=("</s>",), unknown=None):
    """A tokenizer that has these tokens, and is nothing else."""
    return SimpleNamespace(
        get_vocab=lambda: {name: index for index, name in enumerate(names)},
        get_added_vocab=dict,
        all_special_tokens=list(special),
        all_special_ids=[names.index(name) for name in special],
        unk_token_id=None if unknown is None else names.index(unknown),
        eos_token_id=names.index("</s>"),
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["un", "##play", "##able", "</s>", "team", "##s"], [[[0, 1, 2]], [[4, 5]]]),
        (["un", "play", "able", "</s>", "Ġteam", "s"], [[[0, 1, 2]], [[4, 5]]]),
        (["▁un", "play", "able", "</s>", "▁team", "▁s"], [[[0, 1, 2]], [[4], [5]]]),
        (["un@@", "play@@", "able", "</s>", "team", "s"], [[[0, 1, 2]], [[4], [5]]]),
        (["un", "play", "able</w>", "</s>", "team</w>", "s</w>"], [[[0, 1, 2]], [[4], [5]]]),
        (["un", "play", "able", "</s>", "team", "s"], [[[0], [1], [2]], [[4], [5]]]),
    ],
)
def test_words_as_each_kind_of_vocabulary_marks_them(names, words):
    assert Subwords(fake(names)).texts(range(6)) == words


def test_the_mark_is_the_one_that_most_tokens_have():
    """GPT-2 has tokens for Markdown's headings."""
    names = ["Ġteam", "Ġplay", "Ġ", "team", "##", "####", "ing", "</s>", "Ġplaying"]
    subwords = Subwords(fake(names))
    assert subwords.texts([0, 1, 6]) == [[[0], [1, 2]]]
    assert subwords.splits(0) == [(2, 3)] and subwords.splits(8) == [(1, 6)]


def test_unknown_words_are_words_but_not_where_their_token_ends_a_text_too():
    names = ["team", "<unk>", "</s>"]
    assert Subwords(fake(names, ("</s>", "<unk>"), "<unk>")).texts([0, 1, 2]) == [[[0], [1]]]
    assert Subwords(fake(names, ("</s>",), "</s>")).texts([0, 1, 2]) == [[[0], [1]]]


def test_words_of_another_joint_and_bytes_and_whole_words():
    names = ["play@@", "playing", "ing", "pl@@", "ay@@", "<0x0A>", "<", "0x0A>", "</s>"]
    subwords = Subwords(fake(names))
    assert subwords.splits(1) == [(0, 2)] and subwords.splits(5) == []
    whole = Subwords(word_tokenizer(["notebook", "note", "book"]))
    assert whole.whole_words and not any(map(whole.splits, range(5)))
