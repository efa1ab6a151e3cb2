"""Error rates against an edit distance written out by hand, and what is reported beside them."""

from __future__ import annotations

import numpy as np
import pytest

from sft_hf.tasks.scoring.word_errors import (
    CharacterErrorRate,
    WordErrorRate,
    character_edits,
    most_frequent_confusions,
    transcription_metrics,
    word_edits,
)

WORDS = "a b c dd ee".split()


def reference_distance(said, written):
    """The textbook table, cell by cell."""
    table = np.zeros((len(said) + 1, len(written) + 1), dtype=int)
    table[:, 0], table[0, :] = range(len(said) + 1), range(len(written) + 1)
    for i, one in enumerate(said, start=1):
        for j, other in enumerate(written, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one != other))
    return int(table[-1, -1])


def random_texts(count, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(0, 7))) for _ in range(count)]


def test_rates_are_those_of_the_textbook():
    references, predictions = random_texts(200, 1), random_texts(200, 2)
    words = [reference_distance(a.split(), b.split()) for a, b in zip(references, predictions, strict=True)]
    letters = [reference_distance(a, b) for a, b in zip(references, predictions, strict=True)]
    assert [len(row.pairs) for row in word_edits(references, predictions)] == words
    assert [len(row.pairs) for row in character_edits(references, predictions)] == letters
    total = sum(len(text.split()) for text in references)
    assert WordErrorRate().compute(predictions=predictions, references=references) == {"wer": sum(words) / total}
    expected = {"cer": sum(letters) / sum(map(len, references))}
    assert CharacterErrorRate().compute(predictions=predictions, references=references) == expected


def test_edits_turn_the_reference_into_the_prediction():
    for said, written in zip(random_texts(100, 3), random_texts(100, 4), strict=True):
        (edits,) = word_edits([said], [written])
        assert edits.length == len(said.split())
        change = len(written.split()) - len(said.split())
        assert sum((a is None) - (b is None) for a, b in edits.pairs) == change


@pytest.mark.parametrize(
    ("said", "written", "wer", "cer"),
    [
        ("the cat sat", "the cat sat", 0, 0),
        ("the cat sat", "", 1, 1),
        ("the cat sat", "the  cat\tsat ", 0, 0),  # white space is only between words
        ("the cat", "The cat", 1 / 2, 1 / 7),
        ("a b", "a x b y", 1, 4 / 3),
        ("", "two words", 2, 9),  # as jiwer has it: the number of insertions
        ("", "", 0, 0),
        ("日本 語", "日本 本", 1 / 2, 1 / 4),
    ],
)
def test_single_texts(said, written, wer, cer):
    assert WordErrorRate().compute(predictions=[written], references=[said])["wer"] == pytest.approx(wer)
    assert CharacterErrorRate().compute(predictions=[written], references=[said])["cer"] == pytest.approx(cer)


def test_what_is_added_in_batches_counts_as_one():
    references, predictions = random_texts(30, 5), random_texts(30, 6)
    whole = WordErrorRate().compute(predictions=predictions, references=references)
    metric = WordErrorRate()
    metric.add_batch(predictions=predictions[:20], references=references[:20])
    for prediction, reference in zip(predictions[20:], references[20:], strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == whole


def test_the_most_frequent_confusions_come_first():
    references = ["their car", "their cat", "to the", "the end", "the"]
    predictions = ["there car", "there cat", "to", "an end", "the um"]
    found = most_frequent_confusions(word_edits(references, predictions))
    assert found[0] == {"kind": "substitution", "reference": "their", "prediction": "there", "count": 2}
    assert {"kind": "deletion", "reference": "the", "prediction": None, "count": 1} in found
    assert {"kind": "insertion", "reference": None, "prediction": "um", "count": 1} in found
    assert len(most_frequent_confusions(word_edits(references, predictions), limit=2)) == 2


def test_everything_that_is_reported():
    references = ["One two.", "three four five", "six seven", "eight"]
    predictions = ["one two", "three five", "six seven uh", "ate"]
    metrics = transcription_metrics(
        predictions, references, normalize=lambda text: text.lower().strip("."), groups=["x", "x", "y", "y"]
    )
    assert metrics["num_examples"] == 4 and metrics["num_words"] == 8
    assert metrics["wer"] == 5 / 8
    assert metrics["wer_normalized"] == 3 / 8
    assert metrics["exact_match"] == 0
    assert metrics["wer"] == pytest.approx(metrics["substitutions"] + metrics["deletions"] + metrics["insertions"])
    for name in ("wer", "wer_normalized"):
        low, high = metrics[f"{name}_ci95"]
        assert low < metrics[name] < high
    assert metrics["groups"]["x"] | {"wer_ci95": None, "wer_normalized_ci95": None} == {
        "num_examples": 2,
        "num_words": 5,
        "wer": 3 / 5,
        "wer_ci95": None,
        "wer_normalized": 1 / 5,
        "wer_normalized_ci95": None,
    }
    assert {row["reference"] for row in metrics["confusions"]} == {"four", "eight", None}
    brief = transcription_metrics(predictions, references, confidence_samples=0)
    assert not {"wer_ci95", "confusions", "groups", "wer_normalized"} & brief.keys()


def test_references_without_words_have_no_interval_to_resample():
    metrics = transcription_metrics(["uh", ""], ["", ""])
    assert metrics["wer"] == 1 and metrics["wer_ci95"] == [1, 1]


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ([], [], "N >= 1"),
        (["a"], ["a", "b"], "same length"),
        (["a", None], ["a", "b"], "row 1 is NoneType"),
        ("a", "a", "N >= 1"),
        (["a"], [1], "row 0 is int"),
    ],
)
def test_bad_input_is_refused(predictions, references, words):
    with pytest.raises(ValueError, match=words):
        WordErrorRate().compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=words):
        transcription_metrics(predictions, references)


def test_groups_must_be_one_a_row():
    with pytest.raises(ValueError, match="1 groups for 2 rows"):
        transcription_metrics(["a", "b"], ["a", "b"], groups=["x"])
