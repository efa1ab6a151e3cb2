"""CTC against every alignment written out, and its vocabulary."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sft_hf.tasks.speech import ctc


def collapse(path, blank=0):
    return [token for token, _ in itertools.groupby(path) if token != blank]


def reference_loss(logits, labels):
    """Minus the logarithm of the sum, over all paths that collapse to the labels, of their probabilities."""
    probabilities = torch.softmax(logits.double(), dim=-1).numpy()
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
        if collapse(path) == list(labels):
            total += math.prod(probabilities[step, token] for step, token in enumerate(path))
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("labels", [[1], [1, 2], [2, 2], [1, 2, 1]])
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_losses_are_the_sum_over_all_alignments(labels, frames):
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 3)
    padded = torch.tensor([[*labels, -100, -100]])
    (loss,) = ctc.ctc_losses(logits, torch.tensor([frames]), padded, torch.tensor([len(labels)]), 0)
    expected = reference_loss(logits[0, :frames], labels)
    assert float(loss) == pytest.approx(expected, rel=1e-5) if math.isfinite(expected) else torch.isinf(loss)
    assert (frames >= ctc.frames_needed(labels)) == math.isfinite(expected)


def test_rows_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    logits = torch.randn(2, 9, 4)
    frames, lengths = torch.tensor([9, 5]), torch.tensor([3, 2])
    labels = torch.tensor([[1, 2, 3], [3, 1, -100]])
    together = ctc.ctc_losses(logits, frames, labels, lengths, 0)
    alone = [
        ctc.ctc_losses(
            logits[row : row + 1, : frames[row]],
            frames[row : row + 1],
            labels[row : row + 1],
            lengths[row : row + 1],
            0,
        )
        for row in range(2)
    ]
    assert together == pytest.approx(torch.cat(alone))


def test_the_best_path_is_blank_beyond_the_row_and_sure_of_what_it_says():
    probabilities = torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0.0001, 0.0001, 0.9998]])
    tokens, log_probabilities, confidence = ctc.best_path(probabilities.log()[None], torch.tensor([3]), blank=0)
    assert tokens.tolist() == [[1, 0, 2, 0]]
    assert float(confidence[0]) == pytest.approx(math.sqrt(0.8 * 0.6))
    assert log_probabilities[0, :3].exp().tolist() == pytest.approx([0.8, 0.9, 0.6])
    _, _, silent = ctc.best_path(probabilities[1:2].log()[None], torch.tensor([1]), blank=0)
    assert float(silent[0]) == pytest.approx(0.9)


def test_a_vocabulary_is_built_from_the_text():
    texts = ["good day", "a|b", "naïve\tcafé"]
    characters = ctc.characters_of(texts)
    assert characters == sorted(set("goodday" + "ab" + "naïvecafé"))
    tokenizer = ctc.build_tokenizer(characters)
    assert len(tokenizer) == len(characters) + 5
    assert tokenizer.pad_token_id == 0 and tokenizer.word_delimiter_token == "|"
    ids = tokenizer("good day", add_special_tokens=False).input_ids
    assert len(ids) == 8
    frames = [token for one in ids for token in (one, one, 0)]  # repeats collapse, the blank keeps "oo" apart
    assert tokenizer.decode(frames) == "good day"
    assert ctc.word_times(tokenizer, frames, 0.02) == [
        ("good", 0.0, pytest.approx(0.22)),
        ("day", 0.3, pytest.approx(0.46)),
    ]


def test_a_tokenizer_is_the_same_once_saved(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = ctc.build_tokenizer(ctc.characters_of(["hello you"]))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("hello you").input_ids == tokenizer("hello you").input_ids


def test_the_case_is_that_of_the_vocabulary():
    assert ctc.choose_case(["Hello"], "ABCDEFGHIJKLMNOPQRSTUVWXYZ|") == "upper"
    assert ctc.choose_case(["HELLO"], "abcdefghijklmnopqrstuvwxyz|") == "lower"
    assert ctc.choose_case(["Hello"], "Helo") == "keep"


def test_frames_needed():
    assert [ctc.frames_needed(labels) for labels in ([], [1], [1, 1], [1, 2, 2, 2])] == [0, 1, 3, 6]
    assert ctc.frames_needed(np.array([3, 3])) == 3
