"""Transcripts that hold more than text, or less; speeds and masks that do not fit; normalized scores by language."""

from __future__ import annotations

import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
from speech_examples import FAMILIES, opened
from tiers import quick

from sft_hf.core.errors import DataError, RecipeError

NONE = {
    "data__validation_split": None,
    "data__test_split": None,
    "data__validation_fraction": 0,
    "data__test_fraction": 0,
}


@pytest.fixture
def folder(tmp_path, speech_clip):
    """Returns a function that writes a folder of recordings with these transcripts, and returns its path."""

    def make(texts, seconds=None):
        (tmp_path / "data").mkdir(exist_ok=True)
        lines = ["file_name,transcription"]
        for number, text in enumerate(texts):
            samples = speech_clip("four five") if seconds is None else np.zeros(round(16_000 * seconds[number]))
            soundfile.write(tmp_path / "data" / f"{number}.wav", samples, 16_000)
            lines.append(f'{number}.wav,"{text}"')
        (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / "data")

    return make


@pytest.fixture
def letters(wav2vec2_checkpoint, tmp_path):
    """A Wav2Vec2 whose vocabulary is a to z."""
    from sft_hf.tasks.speech.ctc import build_tokenizer

    shutil.copytree(wav2vec2_checkpoint, tmp_path / "letters")
    build_tokenizer(list("abcdefghijklmnopqrstuvwxyz")).save_pretrained(tmp_path / "letters")
    return str(tmp_path / "letters")


@pytest.mark.parametrize(
    ("family", "text", "token"),
    [
        ("whisper", "<|1.25|> four<|2.50|>", r"<\|1\.25\|>"),
        ("whisper", "four <|endoftext|> five", r"<\|endoftext\|>"),
        ("wav2vec2", "four <unk> five", "<unk>"),
        ("wav2vec2", "<s>four five", "<s>"),
    ],
)
def test_special_tokens_in_transcripts_are_refused_or_left_out(
    make_speech_recipe, checkpoints, folder, family, text, token
):
    settings = {"model__name": checkpoints[family], "data__name": folder(["four five", text]), **NONE}
    with pytest.raises(DataError, match=rf"row 1: .*1\.wav: .*holds {token}.*task\.special_tokens: drop"):
        opened(make_speech_recipe(**settings))
    task, examples, _ = opened(make_speech_recipe(task__special_tokens="drop", **settings))
    assert "<" not in examples.references[1].text and "four" in examples.references[1].text
    assert task.family.text(examples.features[1]["labels"]) == examples.references[1].text
    assert any("special tokens left out of 1 transcripts" in note for note in examples.notes)


def test_punctuation_that_a_vocabulary_lacks_is_left_out_and_letters_are_refused(make_speech_recipe, letters, folder):
    settings = {"model__name": letters, **NONE}
    data = folder(["one, two.", "three", "four?"])
    _, examples, _ = opened(make_speech_recipe(data__name=data, **settings))
    assert examples.references[0].text == "one, two."
    assert any("2 transcripts" in note and "',' (1)" in note for note in examples.notes)
    with pytest.raises(DataError, match=r"row 0: .*lacks ',', '\.' .*unknown_characters: drop"):
        opened(make_speech_recipe(data__name=data, task__unknown_characters="stop", **settings))
    data = folder(["one", "caf\u00e9 9"])
    with pytest.raises(DataError, match=r"row 1: .*lacks '9', '\u00e9' of its transcript"):
        opened(make_speech_recipe(data__name=data, **settings))
    task, examples, _ = opened(make_speech_recipe(data__name=data, task__unknown_characters="drop", **settings))
    assert task.family.text(examples.features[1]["labels"]) == "caf"
    assert task.family.tokenizer.unk_token_id not in examples.features[1]["labels"]


@pytest.mark.parametrize("family", quick(["whisper"], FAMILIES))
def test_silence_is_trained_where_it_is_meant(make_speech_recipe, checkpoints, folder, family):
    from sft_hf.jobs.finetune import finetune

    data = folder(["four five", "", "one two", "", "six", "one"] * 3)
    settings = {"model__name": checkpoints[family], "data__name": data}
    with pytest.raises(DataError, match=r"row 1: .*task\.empty_transcripts: keep"):
        opened(make_speech_recipe(**settings, **NONE))
    result = finetune(make_speech_recipe(task__empty_transcripts="keep", train__max_steps=2, **settings))
    assert np.isfinite(result.metrics["test"]["wer"]) and np.isfinite(result.metrics["test"]["loss"])


def test_error_rates_of_silence_count_what_was_written():
    from sft_hf.tasks.scoring.word_errors import transcription_metrics

    metrics = transcription_metrics(["", "a b", "c"], ["", "", "c"], confidence_samples=20)
    assert metrics["wer"] == 2.0 and metrics["num_words"] == 1
    assert transcription_metrics(["", ""], ["", ""], confidence_samples=20)["wer"] == 0.0


@pytest.mark.parametrize(
    ("language", "text", "written"), [("tr", "KIZIL İP", "k\u0131z\u0131l ip"), ("english", "KIZIL", "kizil")]
)
def test_the_case_follows_the_language(make_speech_recipe, wav2vec2_checkpoint, folder, language, text, written):
    recipe = make_speech_recipe(
        model__name=str(wav2vec2_checkpoint),
        data__name=folder([text]),
        task__language=language,
        task__text_case="lower",
        **NONE,
    )
    task, examples, _ = opened(recipe)
    assert examples.references[0].text == written == task.family.text(examples.features[0]["labels"])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_are_one_text(make_speech_recipe, wav2vec2_checkpoint, folder, form):
    text = unicodedata.normalize(form, "\u00e9t\u00e9 gar\u00e7on")
    recipe = make_speech_recipe(model__name=str(wav2vec2_checkpoint), data__name=folder([text]), **NONE)
    _, examples, _ = opened(recipe)
    assert examples.references[0].text == "\u00e9t\u00e9 gar\u00e7on"
    assert len(examples.features[0]["labels"]) == 10


def test_scripts_without_blanks_are_noted(make_speech_recipe, folder):
    for texts, expected in ((["\u4eca\u5929\u5929\u6c14", "\u6211\u4eec\u8d70\u5427"], 1), (["one two", "\u4eca"], 0)):
        task, examples, _ = opened(make_speech_recipe(data__name=folder(texts), **NONE))
        findings = task.findings({"train": examples})
        assert len(findings) == expected and all("cer" in finding.text for finding in findings)


def test_segments_are_cut_exactly(make_speech_recipe, tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    (tmp_path / "metadata.csv").write_text(
        "file_name,transcription,start,end\na.wav,one,0.5,1.5\na.wav,two,1.5,3\na.wav,six,0,0.25\n"
    )
    settings = {"data__name": str(tmp_path), **NONE}
    task, examples, _ = opened(make_speech_recipe(**settings))
    assert [row["seconds"] for row in examples.features] == [1.0, 1.5, 0.25]
    for row, (start, end) in zip(examples.features, [(8_000, 24_000), (24_000, 48_000), (0, 4_000)], strict=True):
        assert np.array_equal(row["features"], task.family.extract(samples[start:end]))
    (tmp_path / "metadata.csv").write_text("file_name,transcription,start,end\na.wav,one,0.5,5\na.wav,two,2,1\n")
    with pytest.raises(
        DataError, match=r"row 0: .*0\.5 to 5 s, and the recording lasts 3\.00 s.*segment_columns: none"
    ):
        opened(make_speech_recipe(**settings))


# --- what augmentation makes of a clip ---------------------------------------------------------------------------


def test_slowed_clips_fit_into_the_window(make_speech_recipe, folder):
    data = folder(["one", "two"], [3.9, 2.0])  # the model hears 4 s
    settings = {"data__name": data, "task__speed_factors": [0.8, 1.0], **NONE}
    _, examples, _ = opened(make_speech_recipe(**settings))
    assert any("1 clips are too long to be played at 0.8 times" in note for note in examples.notes)
    seen = [[row["seconds"] for row in examples.view("train", epoch).features] for epoch in range(12)]
    assert {round(seconds[0], 2) for seconds in seen} == {3.9}
    assert {round(seconds[1], 2) for seconds in seen} == {2.0, 2.5}
    with pytest.raises(DataError, match=r"row 0: .*task\.speed_factors"):
        opened(make_speech_recipe(**{**settings, "task__speed_factors": [0.8]}))


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("whisper", {"task__mask_time_length": 5000, "task__mask_time_prob": 0.1}, r"mask_time_length: .*200"),
        ("whisper", {"task__mask_feature_length": 41, "task__mask_feature_prob": 0.1}, r"mask_feature_length: .*40"),
        ("wav2vec2", {"task__mask_time_length": 5000, "task__mask_time_prob": 0.1}, r"mask_time_length: masks of 5000"),
        ("wav2vec2", {"task__mask_feature_length": 64, "task__mask_feature_prob": 0.1}, r"mask_feature_length: .*32"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(make_speech_recipe, checkpoints, family, changes, words):
    task, _, source = opened(make_speech_recipe(model__name=checkpoints[family], **changes))
    with pytest.raises(RecipeError, match=rf"task\.{words}"):
        task.build_model(source, task.recipe.model)


@pytest.mark.parametrize("family", quick(["wav2vec2"], FAMILIES))
def test_masks_longer_than_a_clip_but_not_than_all_train(make_speech_recipe, checkpoints, folder, family):
    from sft_hf.jobs.finetune import finetune

    data = folder(["one", "two five", "six", "one"] * 4, [0.3, 1.9, 0.2, 0.4] * 4)
    masks = {"task__mask_time_prob": 0.5, "task__mask_time_length": 150, "task__mask_feature_prob": 0.3}
    masks["task__mask_feature_length"] = 8
    recipe = make_speech_recipe(
        model__name=checkpoints[family],
        data__name=data,
        train__max_steps=4,
        train__per_device_train_batch_size=1,
        **masks,
    )
    assert np.isfinite(finetune(recipe).metrics["train"]["final_loss"])
