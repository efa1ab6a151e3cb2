"""Long recordings: where they are cut, how the parts are joined, and what subtitles look like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sft_hf.tasks.speech.transcripts import (
    MAX_CUE_CHARACTERS,
    MAX_CUE_SECONDS,
    Cue,
    Word,
    chunk_spans,
    cues_of,
    format_srt,
    format_subtitles,
    format_vtt,
    merge_words,
    segments_of,
    spread_words,
)


@pytest.mark.parametrize("duration", [0.2, 10.0, 10.01, 19.0, 25.3, 7200.0])
@pytest.mark.parametrize(("chunk", "overlap"), [(10.0, 0.0), (10.0, 2.0), (9.5, 1.6)])
def test_parts_cover_the_recording_and_overlap(duration, chunk, overlap):
    spans = chunk_spans(duration, chunk, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(duration)
    assert all(end - start <= chunk + 1e-9 for start, end in spans)
    assert all(before[1] - after[0] >= overlap - 1e-6 for before, after in pairwise(spans))
    if len(spans) > 1:
        assert spans[-1][1] - spans[-1][0] == pytest.approx(chunk)
        assert len(spans) == 1 + int(np.ceil((duration - chunk) / (chunk - overlap) - 1e-9))


def said(text, start=0.0, seconds=0.5):
    return [
        Word(word, start + index * seconds, start + (index + 1) * seconds) for index, word in enumerate(text.split())
    ]


def text_of(words):
    return " ".join(word.text for word in words)


def test_parts_are_joined_where_they_agree():
    story = "a long time ago in a galaxy far far away there was a war among the stars".split()
    words = said(" ".join(story))
    spans = chunk_spans(8.5, 4.0, 1.0)
    parts = [[word for word in words if word.start >= start and word.end <= end] for start, end in spans]
    assert len(parts) == 3
    assert merge_words(parts, spans) == words
    # the last word of a part and the first of the next are often wrong
    parts = [
        [*part[:-1], Word("umm", part[-1].start, part[-1].end)] if index < len(parts) - 1 else part
        for index, part in enumerate(parts)
    ]
    assert text_of(merge_words(parts, spans)) == " ".join(story)


def test_letter_case_and_punctuation_do_not_keep_words_apart():
    parts = [said("we met at noon."), said("At noon, we ate", start=1.0)]
    assert text_of(merge_words(parts, [(0.0, 2.0), (1.0, 3.0)])) == "we met at noon, we ate"


def test_without_agreement_each_keeps_its_side_of_the_overlap():
    spans = [(0.0, 4.0), (2.0, 6.0)]
    parts = [said("a b c d", seconds=1.0), said("w x y z", start=2.0, seconds=1.0)]
    assert text_of(merge_words(parts, spans)) == "a b c x y z"
    assert merge_words([[], parts[1]], spans) == parts[1][1:]
    assert text_of(merge_words([parts[0], []], spans)) == "a b c"
    assert merge_words([], []) == []


def test_a_word_said_twice_is_not_swallowed():
    parts = [said("no no no stop", seconds=1.0), said("no stop please now", start=2.0, seconds=1.0)]
    assert text_of(merge_words(parts, [(0.0, 4.0), (2.0, 6.0)])) == "no no no stop please now"


def test_words_share_the_time_by_their_letters():
    words = spread_words(" a bcd ", 1.0, 3.0)
    assert words == [Word("a", 1.0, 1.5), Word("bcd", 1.5, 3.0)]
    assert spread_words("  ", 0.0, 1.0) == []


def test_subtitles_end_with_sentences_pauses_and_before_they_grow_too_long():
    words = [
        *said("This is it. And this?"),
        *said("after a pause", start=9.0),
        *said("word " * 60, start=10.5, seconds=0.2),
    ]
    cues = cues_of(words)
    assert [cue.text for cue in cues[:3]] == ["This is it.", "And this?", "after a pause " + "word " * 13 + "word"]
    assert text_of(words) == " ".join(cue.text for cue in cues)
    assert all(len(cue.text) <= MAX_CUE_CHARACTERS and cue.end - cue.start <= MAX_CUE_SECONDS for cue in cues)
    assert all(a.end <= b.start for a, b in pairwise(cues))
    assert [cue.end - cue.start for cue in cues_of(said("x " * 20, seconds=1.0))] == [7, 7, 6]


def test_formats(tmp_path):
    cues = [Cue(0.0, 1.5, "one <two> & three"), Cue(3661.0015, 3662.9996, "four")]
    assert format_srt(cues) == (
        "1\n00:00:00,000 --> 00:00:01,500\none <two> & three\n\n2\n01:01:01,002 --> 01:01:03,000\nfour\n"
    )
    assert format_vtt(cues) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none &lt;two&gt; &amp; three\n\n01:01:01.002 --> 01:01:03.000\nfour\n"
    )
    row = {"prediction": "one two", "confidence": 0.5, "segments": segments_of(said("one two"))}
    assert row["segments"] == [{"start": 0.0, "end": 1.0, "text": "one two"}]
    assert format_subtitles(row, "srt") == "1\n00:00:00,000 --> 00:00:01,000\none two\n"
    assert format_subtitles(row, "vtt").startswith("WEBVTT\n\n00:00:00.000")
    assert format_srt([]) == "" and format_vtt([]) == "WEBVTT\n"
