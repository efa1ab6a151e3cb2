"""Whole runs of both kinds of recognizers on chords that stand for words, and recordings that are none."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sft_hf.errors import CheckpointError, DataError, RecipeError
from sft_hf.inference import evaluate_run, predict_inputs
from sft_hf.recipe import load_recipe
from sft_hf.registry import load_component
from sft_hf.run import finetune
from sft_hf.sources import resolve

FAMILIES = ["whisper", "wav2vec2"]
LEARN_BY_HEART = {
    "optim__learning_rate": 6e-3,
    "optim__lr_scheduler_type": "constant_with_warmup",
    "eval__eval_steps": 40,
    "eval__early_stopping_patience": 2,
    "train__logging_steps": 50,
}


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def checkpoints(whisper_checkpoint, wav2vec2_checkpoint):
    return {"whisper": str(whisper_checkpoint), "wav2vec2": str(wav2vec2_checkpoint)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, whisper_checkpoint, wav2vec2_checkpoint, speech_folder):
    """A run of each family that knows its 8 recordings by heart; several tests look at them, and none changes them."""
    from sft_hf.recipe import apply_overrides, validate_recipe

    runs = {}

    def train(family):
        if family not in runs:
            model = whisper_checkpoint if family == "whisper" else wav2vec2_checkpoint
            data = {
                "task": {"name": "speech_recognition", "language": "english"},
                "model": {"name": str(model)},
                "data": {"name": str(speech_folder), "group_column": "speaker"},
                "train": {"per_device_train_batch_size": 4, "mixed_precision": "no", "num_threads": 1},
                "output_dir": str(tmp_path_factory.mktemp("runs") / family),
            }
            settings = {**LEARN_BY_HEART, "train__max_steps": 120 if family == "whisper" else 320}
            overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
            runs[family] = finetune(validate_recipe(apply_overrides(data, overrides)))
        return runs[family]

    return train


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_recordings_are_learned_by_heart(trained, family):
    result = trained(family)
    metrics = result.metrics["test"]
    assert metrics["wer"] == metrics["cer"] == metrics["wer_normalized"] == 0
    assert metrics["wer_ci95"] == [0, 0]
    assert metrics["exact_match"] == 1
    assert metrics["num_examples"] == 8
    assert set(metrics["groups"]) == {"a", "b"}
    assert result.metrics["primary_metric"] == "wer"
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert all(row["reference"] == row["prediction"] and 0.5 < row["confidence"] <= 1 for row in rows)
    # The lowest rate was kept, though the first evaluation was the highest.
    rates = [line["eval_wer"] for line in read_rows(result.output_dir / "log.jsonl") if "eval_wer" in line]
    assert rates[0] > 0
    assert result.metrics["train"]["best_step"] == 40 * (1 + int(np.argmin(rates)))


def clip(path):
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    return {"raw": samples, "sampling_rate": rate}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_pipeline_opens_the_model_and_agrees(trained, speech_folder, family):
    from transformers import pipeline

    result = trained(family)
    recognize = pipeline("automatic-speech-recognition", model=str(result.output_dir / "model"), device="cpu")
    paths = sorted((speech_folder / "test").glob("*.wav"))
    ours = [row["prediction"] for row in predict_inputs(result.output_dir, [str(speech_folder / "test")])]
    assert [" ".join(recognize(clip(path))["text"].split()) for path in paths] == ours


def test_the_saved_whisper_is_whole(trained, whisper_checkpoint):
    from transformers import AutoProcessor, pipeline

    folder = trained("whisper").output_dir / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["max_source_positions"] == 200 and config["audio_window_seconds"] == 2
    name = "model.encoder.embed_positions.weight"
    before, after = (
        load_file(whisper_checkpoint / "model.safetensors")[name],
        load_file(folder / "model.safetensors")[name],
    )
    assert torch.equal(before, after)
    recognize = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * 16_000).astype(np.float32)
    assert isinstance(recognize({"raw": noise, "sampling_rate": 16_000})["text"], str)
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "WhisperProcessor"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_window_needs_no_help_to_agree_with_the_pipeline(make_speech_recipe, checkpoints, speech_folder, family):
    from transformers import pipeline

    result = finetune(
        make_speech_recipe(model__name=checkpoints[family], task__window="full", train__num_train_epochs=40)
    )
    recognize = pipeline("automatic-speech-recognition", model=str(result.output_dir / "model"), device="cpu")
    ours = [row["prediction"] for row in read_rows(result.output_dir / "predictions.jsonl")]
    paths = sorted((speech_folder / "test").glob("*.wav"))
    assert [" ".join(recognize(clip(path))["text"].split()) for path in paths] == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_and_predict_agree_with_the_run(trained, speech_folder, family):
    result = trained(family)
    again = evaluate_run(result.output_dir, "test")
    assert again["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-5)
    assert again["wer"] == 0
    rows = read_rows(result.output_dir / "predictions.jsonl")
    inputs = [
        str(speech_folder / "test"),
        str(speech_folder / "test" / "03.wav"),
        str(speech_folder / "test" / "metadata.csv"),
    ]
    short = {"predict_window": "auto"} if family == "whisper" else {}  # as it was scored
    predicted = list(predict_inputs(result.output_dir, inputs, batch_size=3, **short))
    assert [row["prediction"] for row in predicted] == [row["prediction"] for row in [*rows, rows[3], *rows]]
    assert [row["confidence"] for row in predicted[:8]] == pytest.approx([row["confidence"] for row in rows], abs=1e-3)
    assert predicted[8]["audio"] == inputs[1] and "segments" not in predicted[0]
    fast = list(predict_inputs(result.output_dir, inputs[1:2], mixed_precision="bf16", **short))
    assert fast[0]["confidence"] == pytest.approx(rows[3]["confidence"], abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_the_batch(trained, speech_folder, family):
    run, inputs = trained(family).output_dir, [str(speech_folder / "test")]
    alone, *others = (list(predict_inputs(run, inputs, batch_size=size)) for size in (1, 3, 16))
    for rows in others:
        assert [row["prediction"] for row in rows] == [row["prediction"] for row in alone]
        assert [row["confidence"] for row in rows] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_recordings_are_cut_joined_and_timed(trained, speech_clip, speech_folder, tmp_path, capsys, family):
    import soundfile

    from sft_hf.cli import run as command

    run = str(trained(family).output_dir)
    text = " ".join(["one two three four five six", "six four two one three five"] * 12)  # longer than any window
    soundfile.write(tmp_path / "long.flac", speech_clip(text), 16_000)
    shutil.copy(speech_folder / "test" / "02.wav", tmp_path / "short.wav")  # "two", as it was learned
    soundfile.write(tmp_path / "blink.wav", speech_clip("two")[:80], 16_000)  # 5 ms: shorter than one frame
    inputs = [str(tmp_path / name) for name in ("long.flac", "short.wav", "blink.wav")]
    long, short, blink = predict_inputs(run, inputs, timestamps=True)
    duration = 0.2 * len(text.split())
    for row, seconds in ((long, duration), (short, 0.2)):
        times = [time for segment in row["segments"] for time in (segment["start"], segment["end"])]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds + 0.02
        assert " ".join(segment["text"] for segment in row["segments"]) == row["prediction"]
    assert 0 < long["confidence"] <= 1
    if family == "wav2vec2":  # the tiny Whisper never saw a timestamp in training
        assert short["prediction"] == "two"
    assert isinstance(blink["prediction"], str)

    assert command(["predict", run, inputs[0], "--output", str(tmp_path / "long.srt")]) == 0
    assert (tmp_path / "long.srt").read_text().startswith("1\n00:00:0")
    assert command(["predict", run, inputs[0], "--format", "vtt"]) == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n\n00:00:0")
    assert command(["predict", run, *inputs, "--format", "srt", "--output", str(tmp_path / "subtitles")]) == 0
    written = sorted(path.name for path in (tmp_path / "subtitles").iterdir())
    assert written == ["blink.srt", "long.srt", "short.srt"]
    assert (tmp_path / "subtitles" / "long.srt").read_text() == (tmp_path / "long.srt").read_text()
    assert command(["predict", run, *inputs, "--output", str(tmp_path / "one.srt")]) == 2
    assert "name a folder by --output" in capsys.readouterr().err and not (tmp_path / "one.srt").exists()
    (tmp_path / "sub").mkdir()
    twin = shutil.copy(inputs[1], tmp_path / "sub")
    assert command(["predict", run, inputs[1], str(twin), "--format", "srt", "--output", str(tmp_path / "two")]) == 2
    assert "rename one of them" in capsys.readouterr().err


class Killed(Exception):
    pass


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_died_resumes_to_the_same_bits(make_speech_recipe, checkpoints, tmp_path, monkeypatch, family):
    """With everything random that there is: SpecAugment, speed, noise, dropout."""
    from sft_hf import loop

    settings = {
        "model__name": checkpoints[family],
        "train__max_steps": 6,
        "checkpoint__save_steps": 2,
        "eval__eval_steps": 4,
        "task__mask_time_prob": 0.3,
        "task__mask_time_length": 3,
        "task__mask_feature_prob": 0.2,
        "task__mask_feature_length": 4,
        "task__speed_factors": [0.9, 1.0, 1.1],
        "task__noise_probability": 0.5,
        "model__config_overrides": {"dropout": 0.1} if family == "whisper" else {"hidden_dropout": 0.1},
    }
    whole = finetune(make_speech_recipe(output_dir=str(tmp_path / "whole"), **settings))
    plain = loop.train_step

    def dying(training, examples, window, state):
        if state.step == 5:
            raise Killed
        return plain(training, examples, window, state)

    recipe = make_speech_recipe(output_dir=str(tmp_path / "died"), **settings)
    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(Killed):
        finetune(recipe)
    monkeypatch.setattr(loop, "train_step", plain)
    np.random.rand(7)  # what others draw changes nothing
    resumed = finetune(recipe, resume=True)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.metrics["test"] == resumed.metrics["test"]


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_a_window_into_passes_changes_no_gradient(make_speech_recipe, checkpoints, family):
    """Losses are sums over tokens: 8 x 1 and 2 x 4 give the same step."""
    weights = []
    for size, passes in ((8, 1), (2, 4)):
        recipe = make_speech_recipe(
            model__name=checkpoints[family],
            train__max_steps=1,
            train__per_device_train_batch_size=size,
            train__gradient_accumulation_steps=passes,
            optim__name="sgd",
            optim__warmup_ratio=0,
            train__max_grad_norm=0,
        )
        weights.append(load_file(finetune(recipe, overwrite=True).output_dir / "model" / "model.safetensors"))
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-5) for name in weights[0])


def test_bf16_runs(make_speech_recipe, checkpoints):
    for family in FAMILIES:
        recipe = make_speech_recipe(model__name=checkpoints[family], train__max_steps=1, train__mixed_precision="bf16")
        assert finetune(recipe, overwrite=True).metrics["train"]["num_steps"] == 1


def opened(recipe):
    """The task of a recipe, its processor loaded and its train split prepared."""
    from sft_hf.run_inputs import load_data

    task = load_component("tasks", "speech_recognition")(recipe)
    source = resolve(recipe.model.name)
    splits = load_data(recipe, task, source)
    return task, task.prepare(splits.by_role["train"], splits.where["train"]), source


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_models_own_forward(make_speech_recipe, checkpoints, family):
    task, examples, source = opened(make_speech_recipe(model__name=checkpoints[family], task__window="full"))
    model = task.build_model(source, task.recipe.model).eval()
    for row in range(3):
        batch = task.collate([examples.features[row]])
        with torch.no_grad():
            losses, counts = task.losses(model, batch), task.item_counts(batch)
            inputs = {name: batch[name] for name in batch if name not in ("seconds", "input_lengths")}
            own = model(**inputs).loss
        assert counts[0] == len(examples.features[row]["labels"]) + (family == "whisper")
        # of CTC, Transformers gives the row's sum too
        assert float(losses[0] / (counts[0] if family == "whisper" else 1)) == pytest.approx(float(own), rel=1e-4)


def test_lengths_are_what_rows_are_batched_by(make_speech_recipe):
    _, examples, _ = opened(make_speech_recipe())
    words = np.array([len(reference.text.split()) for reference in examples.references])
    assert np.array_equal(examples.lengths, 20 * words)  # hundredths of a second


def test_a_longer_clip_than_any_in_training_gets_a_longer_window(make_speech_recipe):
    task, examples, _ = opened(make_speech_recipe())
    row = examples.features[0]
    assert task.collate([row])["input_features"].shape[-1] == 200
    assert task.collate([row, {**row, "seconds": 3.1}])["input_features"].shape[-1] == 400
    fixed, _, _ = opened(make_speech_recipe(task__window=1.0))
    assert fixed.collate([row])["input_features"].shape[-1] == 200  # the floor of what a clip may need
    slow, _, _ = opened(make_speech_recipe(task__window="full"))
    assert slow.collate([row])["input_features"].shape[-1] == 400


def test_an_epoch_sees_clips_as_its_seeds_say_and_evaluation_as_they_are(make_speech_recipe):
    _, examples, _ = opened(make_speech_recipe(task__speed_factors=[0.9, 1.1], task__noise_probability=1.0))
    first, again, later = (examples.view("train", epoch).features for epoch in (0, 0, 1))
    plain = examples.features
    assert all(np.array_equal(first[row]["features"], again[row]["features"]) for row in range(8))
    assert any(not np.array_equal(first[row]["features"], later[row]["features"]) for row in range(8))
    assert all(first[row]["seconds"] != plain[row]["seconds"] for row in range(8))
    _, unchanged, _ = opened(make_speech_recipe())
    assert unchanged.view("train", 3) is unchanged
    assert all(np.array_equal(plain[row]["features"], unchanged.features[row]["features"]) for row in range(8))


def test_what_transcripts_need_is_no_longer_suppressed(make_speech_recipe, whisper_checkpoint):
    task, _, source = opened(make_speech_recipe())
    six, hash_sign = task.family.encode("six")[0], task.family.tokenizer.convert_tokens_to_ids("#")
    saved = json.loads((whisper_checkpoint / "generation_config.json").read_text())
    assert set(saved["suppress_tokens"]) == {six, hash_sign}
    assert task.build_model(source, task.recipe.model).generation_config.suppress_tokens == [hash_sign]


# --- settings and checkpoints --------------------------------------------------------------------------------


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
    result = finetune(recipe)
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
    if "data__streaming" in changes:  # a stream has no other name for its column
        changes = {**changes, "data__audio_column": "file_name", "data__validation_fraction": 0}
    with pytest.raises(RecipeError) as caught:
        finetune(make_speech_recipe(model__name=name, **changes))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task__speed_factors", [], "at least 1"),
        ("task__speed_factors", [3.0], "less than or equal to 2"),
        ("task__noise_snr_db", [30, 10], "no range"),
        ("task__window", "long", "window"),
        ("task__max_seconds", 0, "greater than 0"),
    ],
)
def test_settings_are_checked(make_speech_recipe, key, value, words):
    with pytest.raises(RecipeError, match=words):
        make_speech_recipe(**{key: value})


def test_other_checkpoints_are_refused(make_speech_recipe, checkpoint):
    with pytest.raises(CheckpointError, match="'bert' checkpoint cannot recognize speech"):
        finetune(make_speech_recipe(model__name=str(checkpoint)))


def test_a_model_without_specaugment_says_so(make_speech_recipe):
    from transformers import MoonshineConfig

    task, _, source = opened(make_speech_recipe(task__mask_time_prob=0.1))
    task.family.config = MoonshineConfig()
    with pytest.raises(RecipeError, match=r"task\.mask_time_prob.*'moonshine' model has no SpecAugment"):
        task.build_model(source, task.recipe.model)


def test_a_vocabulary_of_upper_case_letters_is_used_as_it_is(make_speech_recipe, wav2vec2_checkpoint, tmp_path):
    from sft_hf.speech.ctc import build_tokenizer

    folder = tmp_path / "upper"
    shutil.copytree(wav2vec2_checkpoint, folder)
    build_tokenizer(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")).save_pretrained(folder)
    result = finetune(make_speech_recipe(model__name=str(folder), train__max_steps=1))
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert rows[0]["reference"] == rows[0]["reference"].upper()
    assert evaluate_run(result.output_dir)["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-5)
    task, _, _ = opened(make_speech_recipe(model__name=str(folder), task__vocabulary="train"))
    assert (
        "".join(sorted(task.family.tokenizer.get_vocab()))[-5:] == "tuvwx|"[:5]
        or "x" in task.family.tokenizer.get_vocab()
    )


def test_a_checkpoint_of_ctranslate2_is_converted_once(make_speech_recipe, whisper_checkpoint, tmp_path, monkeypatch):
    from sft_hf.models import conversion
    from sft_hf.speech.checkpoints import transformers_source

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


# --- data ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_folder(speech_folder, tmp_path):
    """Two good rows, and one of each kind of bad ones behind them; returns the folder and {row: words of its error}."""
    import soundfile

    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("00.wav", "01.wav"):
        shutil.copy(speech_folder / "train" / name, folder)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "blink.wav", 0.1 * np.ones(800), 16_000)
    soundfile.write(folder / "long.flac", np.zeros(31 * 8000), 8000)
    (folder / "text.wav").write_text("no sound")
    (folder / "zero.wav").touch()
    rows = [
        ("00.wav", "four five", None),
        ("01.wav", "one one five six", None),
        ("none.wav", "one", "row 3: .*none.wav: holds no audio"),
        ("long.flac", "one", r"row 4: .*long.flac: lasts 31\.0 s, at most"),
        ("text.wav", "one", "row 5: .*text.wav: is no recording that can be read"),
        ("zero.wav", "one", "row 6: .*zero.wav: is an empty file"),
        ("gone.wav", "one", "row 7: .*gone.wav: there is no such file; did you mean none.wav"),
        ("00.wav", " ", "row 8: .*00.wav: column 'transcription' holds no transcript"),
        ("", "one", "row 9: .*nothing where a path"),
        ("blink.wav", "one two three", None),  # 0.05 s: a row for Whisper, and none for CTC
    ]
    table = "".join(f"{name},{text}\n" for name, text, _ in rows)
    (folder / "train.csv").write_text("audio,transcription\n" + table)
    return folder, {index: words for index, (_, _, words) in enumerate(rows) if words}


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_recordings_are_named_or_skipped(make_speech_recipe, checkpoints, bad_folder, family, caplog):
    from datasets import Dataset

    from sft_hf.data.files import read_table

    folder, wrong = bad_folder
    if family == "wav2vec2":
        wrong[9] = "row 10: .*blink.wav: is too short for its transcript: 13 characters need 14 frames"
    none = {"data__validation_split": None, "data__validation_fraction": 0, "data__test_fraction": 0}
    settings = {"model__name": checkpoints[family], "data__name": str(folder), **none}
    task, _, _ = opened(make_speech_recipe(data__on_bad_row="skip", **settings))
    table = read_table(folder / "train.csv")
    paths = [str(folder / name) if name else name for name in table["audio"]]
    strict = make_speech_recipe(**settings)
    for row, words in wrong.items():
        values = {"audio": [paths[row]], "transcription": [table["transcription"][row]], "row_id": [row]}
        task.recipe.data.on_bad_row = "stop"
        with pytest.raises(DataError, match=words) as caught:
            task.prepare(Dataset.from_dict(values), "train.csv")
        assert str(caught.value).startswith("train.csv row ") and "on_bad_row: skip" in str(caught.value)
    with pytest.raises(DataError, match="row 3"):
        finetune(strict)
    task, examples, _ = opened(make_speech_recipe(data__on_bad_row="skip", **settings))
    assert examples.row_ids.tolist() == sorted(set(range(10)) - set(wrong))
    (note,) = [note for note in examples.notes if "skipped" in note]
    assert note.startswith(f"train.csv: {len(wrong)} of 10 rows skipped") and "gone.wav" in note
    result = finetune(make_speech_recipe(data__on_bad_row="skip", train__max_steps=1, **settings))
    assert result.metrics["train"]["num_examples"] == 10 - len(wrong)


def test_nothing_but_bad_rows_is_an_error(make_speech_recipe, tmp_path):
    (tmp_path / "train.csv").write_text("audio,transcription\nx.wav,one\ny.wav,two\n")
    with pytest.raises(DataError, match=r"none of its rows can be used; the first: .*x\.wav"):
        opened(
            make_speech_recipe(
                data__name=str(tmp_path), data__on_bad_row="skip", data__validation_fraction=0, data__test_fraction=0
            )
        )


def test_sets_of_the_hub_bring_bytes(make_speech_recipe, speech_folder, tmp_path):
    from datasets import Audio, Dataset, DatasetDict

    paths = sorted((speech_folder / "train").glob("*.wav"))
    rows = {
        "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "transcription": ["four five"] * 8,
    }
    split = Dataset.from_dict(rows).cast_column("audio", Audio(sampling_rate=16_000))
    DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "saved")
    _, examples, _ = opened(make_speech_recipe(data__name=str(tmp_path / "saved")))
    _, files, _ = opened(make_speech_recipe())
    by_seconds = {row["seconds"]: row["features"] for row in files.features}
    assert all(row["seconds"] in by_seconds for row in examples.features)
    assert len(examples) == 8 - 1  # one was held out for validation


def test_a_stream_of_recordings(make_speech_recipe, speech_folder):
    result = finetune(
        make_speech_recipe(
            data__streaming=True,
            data__audio_column="file_name",
            data__stream_buffer_size=4,
            train__max_steps=3,
            task__speed_factors=[0.9, 1.1],
        )
    )
    assert result.metrics["train"]["num_steps"] == 3


def test_features_beyond_the_cache_are_made_anew(make_speech_recipe, monkeypatch):
    from sft_hf.speech import rows

    _, kept, _ = opened(make_speech_recipe())
    plain = [row["features"] for row in kept.features]
    _, examples, _ = opened(make_speech_recipe())
    clips = rows.ClipStore(examples.features.store.clips, 16_000, examples.features.store.extract, budget=60_000)
    again = [clips.features(row) for row in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    assert 0 < sum(array.nbytes for array in clips._kept.values()) <= 60_000
    kept_rows = {row for row in range(8) if clips.features(row) is clips.features(row)}
    assert 0 in kept_rows and len(kept_rows) < 8


def test_a_recipe_brings_its_data_along(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "recipes" / "speech.yaml"
    file.write_text("task: speech_recognition\nmodel: {name: org/name}\ndata: {name: ./mine}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(str(file)).data.name == str(tmp_path / "recipes" / "mine")
    assert load_recipe(str(file), ["data.name=./mine"]).data.name == "./mine"  # said on the command line: here
    (tmp_path / "elsewhere" / "mine").mkdir()
    assert load_recipe(str(file)).data.name == str(tmp_path / "elsewhere" / "mine")
