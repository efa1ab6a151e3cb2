"""Corpora of speech as they are shipped: each is read from its folder alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.core.sources.sources import resolve
from sft_hf.data.loading.loading import load_splits
from sft_hf.data.loading.speech_layouts.timed_texts import read_segments

COLUMNS = {"data.audio_column": "audio", "data.transcription_column": "transcription"}


def write(path, seconds=0.1, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_text(content, encoding="utf-8")
        return
    soundfile.write(path, np.zeros(round(16_000 * seconds)), 16_000)


def load(folder, **changes):
    return load_splits(DataSection(name=str(folder), **changes), resolve(str(folder)), COLUMNS)


def pairs(split):
    return [(row["audio"], row["transcription"]) for row in split]


def test_common_voice(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav"):
        write(tmp_path / "clips" / name)
    header = "client_id\tpath\tsentence\n"
    write(tmp_path / "validated.tsv", content=header + 's1\ta.wav\t"Hello, she said.\ns1\tb.wav\tIt\'s 5 o"clock\n')
    splits = load(tmp_path)
    assert pairs(splits.by_role["train"]) == [
        (str(tmp_path / "clips" / "a.wav"), '"Hello, she said.'),
        (str(tmp_path / "clips" / "b.wav"), "It's 5 o\"clock"),
    ]
    assert splits.by_role["train"]["client_id"] == ["s1", "s1"]
    assert any("Common Voice" in note for note in splits.notes) and any("validated" in note for note in splits.notes)
    write(tmp_path / "train.tsv", content=header + "s2\tc.wav\tyes\n")
    write(tmp_path / "dev.tsv", content=header + "s3\tb\tno\n")
    splits = load(tmp_path)
    assert {role: split["transcription"][:] for role, split in splits.by_role.items()} == {
        "train": ["yes"],
        "validation": ["no"],
    }
    assert splits.by_role["validation"][0]["audio"].endswith("b.mp3")  # old tables have no endings
    assert any(note.startswith("not used") and "validated" in note for note in splits.notes)


@pytest.mark.parametrize("fields", [2, 3])
def test_ljspeech(tmp_path, fields):
    rows = [("LJ-1", 'Dr. "X" said', "Doctor X said"), ("LJ-2", "in 1990", "in nineteen ninety")]
    for name, _, _ in rows:
        write(tmp_path / "wavs" / f"{name}.wav")
    write(tmp_path / "metadata.csv", content="".join("|".join(row[:fields]) + "\n" for row in rows))
    splits = load(tmp_path)
    assert pairs(splits.by_role["train"]) == [
        (str(tmp_path / "wavs" / f"{row[0]}.wav"), row[fields - 1]) for row in rows
    ]
    write(tmp_path / "metadata.csv", content="LJ-1|a|b\nLJ-2|a|b|c\n")
    with pytest.raises(DataError, match=r"metadata\.csv: line 2 has 4 fields"):
        load(tmp_path)


@pytest.mark.parametrize("several", [True, False])
def test_librispeech(tmp_path, several):
    subsets = {"train-clean-100": ("19", "198"), "train-other-500": ("20", "1"), "dev-clean": ("84", "121")}
    for subset, (speaker, chapter) in subsets.items() if several else [("", ("7", "8"))]:
        place = tmp_path / subset / speaker / chapter
        for number in range(2):
            write(place / f"{speaker}-{chapter}-000{number}.flac")
        lines = (
            f"{speaker}-{chapter}-0000 THE FIRST\n{speaker}-{chapter}-0001 AND SECOND\n{speaker}-{chapter}-0002 LOST\n"
        )
        write(place / f"{speaker}-{chapter}.trans.txt", content=lines)
    splits = load(tmp_path)
    train = splits.by_role["train"]
    assert train["transcription"][:2] == ["THE FIRST", "AND SECOND"]
    assert set(train["speaker"]) == ({"19", "20"} if several else {"7"})
    assert any("without a recording" in note for note in splits.notes)
    if several:
        assert splits.by_role["validation"]["speaker"][:] == ["84", "84"]
        assert len(load(tmp_path, train_split="train-clean-100").by_role["train"]) == 2


def test_multilingual_librispeech(tmp_path):
    write(tmp_path / "train" / "audio" / "12" / "34" / "12_34_000.flac")
    write(tmp_path / "train" / "transcripts.txt", content="12_34_000\tguten tag\n")
    train = load(tmp_path).by_role["train"]
    assert (train["transcription"][:], train["speaker"][:]) == (["guten tag"], ["12"])


@pytest.mark.parametrize("place", ["", "data/train"])
def test_kaldi(tmp_path, place):
    folder = tmp_path / place
    write(tmp_path / "audio" / "call.wav", 2.0)
    source = "audio/call.wav" if place else str(tmp_path / "audio" / "call.wav")
    write(folder / "wav.scp", content=f"rec1 {source}\n")
    write(folder / "text", content="u1 hello there\nu2\nu3 gone\n")
    write(folder / "segments", content="u1 rec1 0.25 0.75\nu2 rec1 1.0 -1\n")
    write(folder / "utt2spk", content="u1 anna\nu2 ben\n")
    splits = load(tmp_path)
    train = splits.by_role["train"]
    path = str(tmp_path / "audio" / "call.wav")
    assert train["audio"][:] == [{"path": path, "start": 0.25, "end": 0.75}, {"path": path, "start": 1.0, "end": None}]
    assert (train["transcription"][:], train["speaker"][:]) == (["hello there", ""], ["anna", "ben"])
    assert any("u3" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("value", "words"),
    [("sox a.sph -t wav - |", "is a command"), ("cat /etc/passwd|", "none is run"), ("a.ark:77", "archive")],
)
def test_commands_of_kaldi_are_refused_by_name(tmp_path, value, words):
    write(tmp_path / "wav.scp", content=f"rec1 {value}\n")
    write(tmp_path / "text", content="rec1 hello\n")
    with pytest.raises(DataError, match=rf"wav\.scp: rec1 .*{words}"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train_manifest.json", "manifest.jsonl", "train.json"])
def test_manifests_of_nemo(tmp_path, name):
    write(tmp_path / "a.wav", 1.0)
    rows = [
        {"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.25, "text": "one", "lang": "en"},
        {"audio_filepath": "a.wav", "offset": 0.0, "duration": 0.5, "text": "two", "lang": "en"},
    ]
    write(tmp_path / name, content="\n".join(map(json.dumps, rows)))
    for source in (tmp_path, tmp_path / name):
        train = load(source).by_role["train"]
        cells = [{"path": str(tmp_path / "a.wav"), "start": 0.5, "end": 0.75}]
        assert train["audio"][:1] == cells and train["transcription"][:] == ["one", "two"]


@pytest.mark.parametrize(
    ("header", "row", "part"),
    [
        ("start,end", "0.5,1.25", (0.5, 1.25)),
        ("start_time,end_time", "00:01,0:00:02.5", (1.0, 2.5)),
        ("offset", "0.75", (0.75, None)),
        ("offset,duration", ",", (None, None)),
    ],
)
def test_columns_of_times(tmp_path, header, row, part):
    content = f"file_name,transcription,{header}\na.wav,one,{row}\nb.wav,two,{'1' + ',2' * header.count(',')}\n"
    write(tmp_path / "metadata.csv", content=content)
    splits = load(tmp_path)
    assert splits.by_role["train"][0]["audio"] == {"path": str(tmp_path / "a.wav"), "start": part[0], "end": part[1]}
    assert any("part of its recording" in note for note in splits.notes)
    whole = load(tmp_path, segment_columns="none").by_role["train"]
    assert whole[0]["audio"] == str(tmp_path / "a.wav")


def test_columns_of_times_by_name_and_what_is_wrong_with_them(tmp_path):
    content = "file_name,transcription,from,to,start,end\na.wav,one,1,2,2020-01-01,x\n"
    write(tmp_path / "metadata.csv", content=content)
    named = load(tmp_path, segment_columns=["from", "to"]).by_role["train"]
    assert named[0]["audio"] == {"path": str(tmp_path / "a.wav"), "start": 1.0, "end": 2.0}
    with pytest.raises(DataError, match=r"row 0: '2020-01-01' .*not a time in seconds.*segment_columns: none"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"no column 'til' \(data\.segment_columns\)"):
        load(tmp_path, segment_columns=["from", "til"])


# --- transcripts beside the recordings ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".txt", ".lab"])
def test_a_text_beside_each_recording(tmp_path, ending):
    for speaker, text in (("anna", "first line\nand second"), ("ben", "")):
        write(tmp_path / "train" / speaker / "1.wav")
        write(tmp_path / "train" / speaker / f"1{ending}", content=text)
    write(tmp_path / "train" / "anna" / "2.wav")
    write(tmp_path / "dev" / "3.wav")
    write(tmp_path / "dev" / f"3{ending}", content="\ufeffheld out")
    splits = load(tmp_path)
    assert splits.by_role["train"]["transcription"][:] == ["first line and second", ""]
    assert splits.by_role["train"]["speaker"][:] == ["anna", "ben"]
    assert splits.by_role["validation"]["transcription"][:] == ["held out"]
    assert any("1 recordings without" in note and "2.wav" in note for note in splits.notes)


SRT = (
    "1\r\n00:00:00,500 --> 00:00:01,250\r\n<i>Hello</i> {\\an8}there\r\nyou\r\n\r\n"
    "2\r\n00:00:02,000 --> 00:00:03,000\r\nbye\r\n"
)
VTT = (
    "WEBVTT\n\nNOTE a note\n\nintro\n00:00.500 --> 00:01.250 align:start\n<v Anna>Hello there &amp; you</v>\n\n"
    "00:02.000 --> 00:03.000\nbye\n"
)
TIER = """    item [{n}]:
        class = "IntervalTier"
        name = "{name}"
        xmin = 0
        xmax = 3.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "Hello ""there"" {name}"
        intervals [3]:
            xmin = 2
            xmax = 3
            text = "bye"
"""
HEAD = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 3.5\n'
    "tiers? <exists>\nsize = {n}\nitem []:\n"
)
SHORT = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n3.5\n<exists>\n1\n"IntervalTier"\n"words"\n0\n3.5\n2\n'
    '0.5\n1.25\n"Hello"\n2\n3\n"bye"\n'
)
ELAN = """<?xml version="1.0" encoding="UTF-8"?><ANNOTATION_DOCUMENT><TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/>
<TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="3000"/></TIME_ORDER>
<TIER TIER_ID="A" PARTICIPANT="anna"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>Hello</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER TIER_ID="B" PARTICIPANT="ben"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE>bye</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"""


@pytest.mark.parametrize(
    ("name", "content", "first", "speaker"),
    [
        ("a.srt", SRT, "Hello there you", None),
        ("a.vtt", VTT, "Hello there & you", "Anna"),
        ("a.TextGrid", HEAD.format(n=1) + TIER.format(n=1, name="words"), 'Hello "there" words', None),
        ("a.TextGrid", SHORT, "Hello", None),
        ("a.eaf", ELAN, "Hello", "anna"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_transcripts_with_times(tmp_path, name, content, first, speaker, encoding):
    write(tmp_path / "a.wav", 3.5)
    (tmp_path / name).write_bytes(content.encode(encoding))
    train = load(tmp_path).by_role["train"]
    path = str(tmp_path / "a.wav")
    assert train["audio"][:] == [{"path": path, "start": 0.5, "end": 1.25}, {"path": path, "start": 2.0, "end": 3.0}]
    assert train["transcription"][:] == [first, "bye"]
    assert ("speaker" in train.column_names) == (speaker is not None) and (
        not speaker or train["speaker"][0] == speaker
    )


def test_one_of_several_tiers_is_named(tmp_path):
    content = HEAD.format(n=2) + TIER.format(n=1, name="left") + TIER.format(n=2, name="right")
    write(tmp_path / "a.TextGrid", content=content)
    with pytest.raises(DataError, match=r"several interval tiers: left, right; .*data\.transcript_tier"):
        read_segments(tmp_path / "a.TextGrid", None)
    with pytest.raises(DataError, match=r"no tier .rigth..*did you mean right"):
        read_segments(tmp_path / "a.TextGrid", "rigth")
    assert read_segments(tmp_path / "a.TextGrid", "right")[0].text.endswith("right")
    write(tmp_path / "a.TextGrid", content=content.replace("left", "Transcript"))
    assert read_segments(tmp_path / "a.TextGrid", None)[0].text.endswith("Transcript")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.eaf", '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "entities"),
        ("a.eaf", "<x>", "not valid XML"),
        ("a.eaf", "<x/>", "has no tiers"),
        ("a.TextGrid", 'File type = "ooTextFile"\nObject class = "TextGrid"\n0 1 <exists> 900', "not a TextGrid"),
        ("a.TextGrid", "hello", "not a TextGrid"),
        ("a.srt", "1\n12 --> 13\nx\n", "not a time"),
        ("a.txt", None, "not UTF-8"),
    ],
)
def test_damaged_transcripts_are_named(tmp_path, name, content, words):
    write(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(b"caf\xe9 \xff" if content is None else content.encode())
    with pytest.raises(DataError, match=rf"{name}: .*{words}"):
        load(tmp_path)


# --- hostile tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "times", "unit"),
    [
        (("start_ms", "end_ms"), (250, 750), "milliseconds"),
        (("Begin_Time", "End_Time"), (0.25, 0.75), "seconds"),
        (("segment_start", "segment_stop"), (0.25, 0.75), "seconds"),
    ],
)
def test_columns_of_times_have_many_names(tmp_path, names, times, unit):
    write(tmp_path / "long.wav", 1)
    rows = [{"audio": "long.wav", "transcription": "a", **dict(zip(names, times, strict=True))}] * 2
    write(tmp_path / "train.jsonl", content="\n".join(map(json.dumps, rows)))
    splits = load(tmp_path)
    assert (splits.by_role["train"][0]["audio"]["start"], splits.by_role["train"][0]["audio"]["end"]) == (0.25, 0.75)
    assert any(f"in {unit}" in note for note in splits.notes)


@pytest.mark.parametrize("names", ["from_sec,to_sec", "onset,length"])
def test_rows_of_one_recording_with_times_of_unknown_names_are_refused(tmp_path, names):
    write(tmp_path / "long.wav", 1)
    table = tmp_path / "train.csv"
    write(table, content=f"audio,transcription,{names}\nlong.wav,a,0,0.4\nlong.wav,b,0.4,0.8\n")
    with pytest.raises(DataError, match=r"same recording.*segment_columns: \[" + names.replace(",", ", ")):
        load(tmp_path)
    assert load(tmp_path, segment_columns="none").by_role["train"][0]["audio"] == str(tmp_path / "long.wav")
    write(tmp_path / "other.wav", 1)
    write(table, content=f"audio,transcription,{names}\nlong.wav,a,0,0.4\nother.wav,b,0.4,0.8\n")
    assert len(load(tmp_path).by_role["train"]) == 2


def test_the_table_of_a_corpus_stands_for_its_folder(tmp_path):
    write(tmp_path / "lj" / "wavs" / "LJ1.wav")
    write(tmp_path / "lj" / "metadata.csv", content='LJ1|No. 1 "x|number one\n')
    assert load(tmp_path / "lj" / "metadata.csv").by_role["train"]["transcription"] == ["number one"]
    write(tmp_path / "cv" / "clips" / "a.mp3", content="")
    for name in ("train", "other"):
        write(tmp_path / "cv" / f"{name}.tsv", content=f'client_id\tpath\tsentence\ns1\ta.mp3\t"{name}\n')
    splits = load(tmp_path / "cv" / "other.tsv")
    assert list(splits.by_role) == ["train"] and splits.by_role["train"]["transcription"] == ['"other']


def test_subsets_that_are_used_are_not_said_to_be_left(tmp_path):
    for subset in ("train-clean-5", "train-other-5", "dev-clean"):
        folder = tmp_path / subset / "1" / "2"
        write(folder / "1-2-0.flac")
        write(folder / "1-2.trans.txt", content="1-2-0 YES\n")
    splits = load(tmp_path)
    assert len(splits.by_role["train"]) == 2 and not any("not used" in note for note in splits.notes)
    assert len(load(tmp_path, train_split="train-other-5").by_role["train"]) == 1
