"""CTC on word pieces, as Parakeet writes them: what can be written, and when each word is said."""

from __future__ import annotations

import pytest
from modern_checkpoints import write_parakeet
from transformers import AutoTokenizer

from sft_hf.tasks.speech import ctc


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_parakeet(tmp_path_factory.mktemp("parakeet")))


def test_pieces_know_the_characters_that_they_are_made_of(tokenizer):
    known = ctc.known_characters(tokenizer)
    assert set("onetwhrfuivsx") <= known and "<" not in known and "a" not in known
    assert ctc.choose_case(["ONE TWO"], known) == "lower"


def test_whole_tokens_are_known_where_none_is_a_piece():
    tokens = ctc.known_characters(ctc.build_tokenizer(["a", "b"]))
    assert {"a", "b", "<pad>"} <= tokens and "p" not in tokens


def test_a_word_lasts_from_its_first_piece_to_its_last(tokenizer):
    blank = tokenizer.pad_token_id
    ids = tokenizer.get_vocab()
    one, start, o, n = (ids[piece] for piece in ("\u2581one", "\u2581", "o", "n"))
    frames = [blank, one, one, blank, start, o, blank, o, n, blank]  # "one", then "oon": a blank parts equal pieces
    assert ctc.word_times(tokenizer, frames, 0.5) == [("one", 0.5, 1.5), ("oon", 2.0, 4.5)]
    assert ctc.word_times(tokenizer, [blank, blank], 0.5) == []
