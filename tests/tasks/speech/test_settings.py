"""Settings of speech recognition and checkpoints that cannot be meant, and those that can."""

from __future__ import annotations

import json
import shutil

import pytest
from small_runs import briefly, read_rows
from speech_examples import opened

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.recipe.registry import load_component
from sft_hf.core.sources.sources import resolve
from sft_hf.jobs.inference import evaluate_run


@pytest.fixture
def multilingual(whisper_checkpoint, tmp_path):
    """The tiny Whisper with tokens for one language, as if it knew more."""
    folder = tmp_path / "multilingual"
    shutil.copytree(whisper_checkpoint, folder)
    file = folder / "generation_config.json"
    config = json.loads(file.read_text())
    start = config["decoder_start_token_id"]
    config |= {"is_multilingual": True, "lang_to_id": {"<|en|>": start + 1}, "task_to_id": {"transcribe": start + 3}}
    file.write_text(json.dumps(config))
    return folder


def test_a_multilingual_whisper_is_trained_with_the_prompt_that_it_starts_with(make_speech_recipe, multilingual):
    recipe = make_speech_recipe(model__name=str(multilingual), task__language="English", train__max_steps=1)
    result = briefly(recipe)
    task, model = load_component("tasks", "speech_recognition").restore(recipe, result.output_dir / "model")
    start = task.config.decoder_start_token_id
    assert task.family.prompt == [start, start + 1, start + 3, start + 4]
    generation = model.generation_config
    assert (generation.language, generation.task) == ("english", "transcribe")
    own = model._retrieve_init_tokens(
        None, batch_size=1, generation_config=generation, config=model.config, num_segment_frames=200, kwargs={}
    )
    assert own.tolist() == [task.family.prompt]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("multilingual", {}, ["task.language", "say which"]),
        ("multilingual", {"task__language": "englsh"}, ["task.language", "did you mean english"]),
        ("whisper", {"task__language": "german"}, ["task.language", "only transcribes English"]),
        ("whisper", {"task__task": "translate"}, ["only transcribes English"]),
        ("whisper", {"eval__metric_for_best_model": "accuracy"}, ["metric_for_best_model", "wer"]),
        (
            "wav2vec2",
            {"data__streaming": True, "train__max_steps": 1, "data__data_files": {"train": "train/metadata.csv"}},
            ["vocabulary", "stream"],
        ),
    ],
)
def test_settings_that_cannot_be_met_are_recipe_errors(
    make_speech_recipe, checkpoints, multilingual, kind, changes, words
):
    name = str(multilingual) if kind == "multilingual" else checkpoints[kind]
    if "data__streaming" in changes:
        changes = {**changes, "data__validation_fraction": 0}
    with pytest.raises(RecipeError) as caught:
        briefly(make_speech_recipe(model__name=name, **changes))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task__speed_factors", [], "at least 1"),
        ("task__speed_factors", [3.0], "less than or equal to 2"),
        ("task__noise_snr_db", [30, 10], "not a range"),
        ("task__window", "long", "window"),
        ("task__max_seconds", 0, "greater than 0"),
    ],
)
def test_settings_are_checked(make_speech_recipe, key, value, words):
    with pytest.raises(RecipeError, match=words):
        make_speech_recipe(**{key: value})


def test_other_checkpoints_are_refused(make_speech_recipe, checkpoint):
    with pytest.raises(CheckpointError, match="'bert' model cannot recognize speech"):
        briefly(make_speech_recipe(model__name=str(checkpoint)))


def test_a_model_without_specaugment_says_so(make_speech_recipe):
    from transformers import MoonshineConfig

    task, _, source = opened(make_speech_recipe(task__mask_time_prob=0.1))
    task.family.config = MoonshineConfig()
    with pytest.raises(RecipeError, match=r"task\.mask_time_prob.*'moonshine' model has no SpecAugment"):
        task.build_model(source, task.recipe.model)


def test_a_vocabulary_of_upper_case_letters_is_used_as_it_is(make_speech_recipe, wav2vec2_checkpoint, tmp_path):
    from sft_hf.tasks.speech.ctc import build_tokenizer

    folder = tmp_path / "upper"
    shutil.copytree(wav2vec2_checkpoint, folder)
    build_tokenizer(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")).save_pretrained(folder)
    result = briefly(make_speech_recipe(model__name=str(folder), train__max_steps=1))
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert rows[0]["reference"] == rows[0]["reference"].upper()
    assert evaluate_run(result.output_dir)["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-5)
    task, _, _ = opened(make_speech_recipe(model__name=str(folder), task__vocabulary="train"))
    assert (
        "".join(sorted(task.family.tokenizer.get_vocab()))[-5:] == "tuvwx|"[:5]
        or "x" in task.family.tokenizer.get_vocab()
    )


def test_a_checkpoint_of_ctranslate2_is_converted_once(make_speech_recipe, whisper_checkpoint, tmp_path, monkeypatch):
    from sft_hf.models.formats import ctranslate2 as conversion
    from sft_hf.models.formats.ctranslate2 import transformers_source

    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "ct2").mkdir()
    (tmp_path / "ct2" / "model.bin").write_bytes(b"weights")
    calls = []

    def convert(folder, target):
        calls.append(folder)
        shutil.copytree(whisper_checkpoint, target)

    monkeypatch.setattr(conversion, "convert_whisper", convert)
    source = resolve(str(tmp_path / "ct2"))
    first, second = transformers_source(source), transformers_source(source)
    assert first == second and first.path.is_relative_to(tmp_path / "cache") and first.name == source.name
    assert calls == [tmp_path / "ct2"]
    task, _, _ = opened(make_speech_recipe(model__name=str(tmp_path / "ct2")))
    assert task.config.model_type == "whisper"
