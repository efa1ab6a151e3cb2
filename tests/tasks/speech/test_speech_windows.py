"""Whisper in windows that each clip needs: the same losses, gradients and transcripts, however rows are batched."""

from __future__ import annotations

import csv
import json

import distributed_gradients
import numpy as np
import pytest
import torch
from distributed_gradients import relative_difference, window_gradients
from safetensors.torch import load_file
from small_runs import killed_and_resumed
from tiers import long
from tiny_recipes import tiny_recipe
from two_processes import run_on_two_processes

from sft_hf.core.errors import RecipeError
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run, open_trained
from sft_hf.jobs.run import predict_files

STILL = {"optim__name": "sgd", "optim__learning_rate": 1e-30, "train__max_grad_norm": 0}
BUCKETS = {"task__window": "buckets", "data__validation_split": None, "data__validation_fraction": 0}


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory, speech_clip):
    """27 recordings of 0.8 to 3.8 s, the test split 9 of them; Whisper hears 4 s here, in windows of 2, 3 and 4."""
    import soundfile

    folder = tmp_path_factory.mktemp("long")
    words, generator = ["one", "two", "three", "four", "five", "six"], np.random.default_rng(3)
    texts = [" ".join(generator.choice(words, 1 + index // 3 % 3)) for index in range(27)]
    for split, chosen in (("train", range(27)), ("test", range(0, 27, 3))):
        (folder / split).mkdir()
        with open(folder / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "transcription"])
            for index in chosen:
                said, samples = speech_clip(texts[index], index), np.zeros(round((0.8 + index * 3 / 26) * 16_000))
                samples[: len(said)] = said
                soundfile.write(folder / split / f"{index:02}.wav", samples, 16_000)
                table.writerow([f"{index:02}.wav", texts[index]])
    return folder


@pytest.fixture
def make(make_speech_recipe, long_folder):
    """A recipe on these recordings, in buckets."""

    def recipe(**changes):
        return make_speech_recipe(data__name=str(long_folder), **{**BUCKETS, **changes})

    return recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory, whisper_checkpoint, long_folder):
    """A run in buckets, trained for a moment: what it writes is no longer chance."""
    folder = tmp_path_factory.mktemp("runs") / "buckets"
    changes = {
        "task__language": "english",
        "task__window": "buckets",
        "data__validation_fraction": 0,
        "train__per_device_train_batch_size": 9,
        "train__max_steps": 150,
        "optim__learning_rate": 6e-3,
    }
    return finetune(tiny_recipe("speech_recognition", whisper_checkpoint, long_folder, folder, **changes))


def gradients(recipe):
    return window_gradients(recipe)[0]


def cut(size, passes):
    # In random order, so that every batch has rows of several windows.
    sizes = {"train__per_device_train_batch_size": size, "train__gradient_accumulation_steps": passes}
    return {**sizes, **STILL, "train__group_by_length": False, "optim__weight_decay": 0.0}


@pytest.fixture(scope="module")
def cache():
    """The gradients of the whole batch, filled by the first test that needs them."""
    return {}


def whole_batch(make, cache):
    if not cache:
        cache.update(gradients(make(**cut(16, 1))))
    return cache


@pytest.mark.parametrize(("size", "passes"), [(4, 4), long((1, 16)), long((8, 2))])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(make, cache, size, passes):
    assert relative_difference(gradients(make(**cut(size, passes))), whole_batch(make, cache)) < 1e-5


@pytest.mark.parametrize("technique", ["mixup", long("adversarial")])
def test_with_techniques_on_inputs_of_several_windows_neither(make, technique):
    techniques = [{"name": technique}]
    whole = gradients(make(techniques=techniques, **cut(16, 1)))
    assert relative_difference(gradients(make(techniques=techniques, **cut(4, 4))), whole) < 1e-5


@pytest.mark.long
def test_two_processes_give_the_gradient_of_one(make, cache, tmp_path):
    whole = whole_batch(make, cache)
    (tmp_path / "recipe.yaml").write_text(make(**cut(4, 2)).to_yaml())
    run_on_two_processes(distributed_gradients.__file__, tmp_path / "recipe.yaml", tmp_path / "gradients")
    for rank in (0, 1):
        assert relative_difference(load_file(tmp_path / f"gradients.rank{rank}"), whole) < 1e-5


def opened(recipe):
    from sft_hf.core.recipe.registry import load_component
    from sft_hf.core.sources.sources import resolve
    from sft_hf.jobs.inputs import load_data

    task, source = load_component("tasks", "speech_recognition")(recipe), resolve(recipe.model.name)
    splits = load_data(recipe, task, source)
    return task, task.prepare(splits.by_role["train"], splits.where["train"]), source


def test_a_row_has_the_loss_that_it_has_alone_in_the_smallest_window_that_it_fits_into(make):
    task, examples, source = opened(make())
    assert task.family.windows == (2, 3, 4)
    assert any(note.startswith("Whisper's window: 2 or 3 or 4 of 4 s") for note in examples.notes)
    model = task.build_model(source, task.recipe.model).eval()
    rows = [examples.features[index] for index in (26, 0, 15, 25, 1, 16)]
    batch = task.collate(rows)
    assert batch["frames"].tolist() == [400, 200, 300, 400, 200, 300]
    with torch.no_grad():
        together = task.losses(model, batch)
        for row, loss, frames in zip(rows, together, batch["frames"].tolist(), strict=True):
            alone = task.collate([row])
            assert alone["input_features"].shape[-1] == frames and "frames" not in alone
            assert float(task.losses(model, alone)[0]) == pytest.approx(float(loss), rel=1e-5)
    row = next(row for row in map(examples.features.__getitem__, range(27)) if 2 < row["seconds"] < 2.5)
    assert task.collate([{**row, "windows": (2.5, 3.0)}])["input_features"].shape[-1] == 250  # no whole second
    others = [float(task.losses(model, task.collate([{**row, "windows": (4.0,)}]))[0].detach()) for row in rows]
    assert not np.allclose(others, together, rtol=1e-3)  # the window does matter


def test_a_clip_longer_than_any_in_training_leaves_the_others_their_window(make_speech_recipe):
    task, examples, _ = opened(make_speech_recipe())
    row = examples.features[0]
    batch = task.collate([row, {**row, "seconds": 3.1}])
    assert batch["frames"].tolist() == [200, 400]


@pytest.mark.long
def test_a_run_that_died_resumes_to_the_same_bits(make, tmp_path):
    """With windows of other lengths; a run with one: test_runs.py."""

    settings = {
        "train__max_steps": 6,
        "checkpoint__save_steps": 2,
        "task__speed_factors": [0.95, 1.0, 1.1],
        "task__mask_time_prob": 0.2,
        "task__mask_time_length": 3,
        "model__config_overrides": {"dropout": 0.1},
        "train__group_by_length": False,
    }
    whole = finetune(make(output_dir=str(tmp_path / "whole"), **settings))
    resumed = killed_and_resumed(make(output_dir=str(tmp_path / "died"), **settings), 5)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.metrics["test"] == resumed.metrics["test"]


@pytest.mark.parametrize(("window", "windows"), [long(("auto", (4.0,))), ("buckets", (2.0, 3.0, 4.0))])
def test_the_log_counts_the_silence_up_to_the_window_as_padding(make, caplog, tmp_path, window, windows):
    seconds = [round((0.8 + index * 3 / 26) * 16_000) / 16_000 for index in range(27)]
    heard = sum(min(each for each in windows if each >= value) for value in seconds)
    with caplog.at_level("INFO", "sft_hf"):
        finetune(make(task__window=window, train__max_steps=1, output_dir=str(tmp_path / "run")))
    assert f"padding: {100 * (1 - sum(seconds) / heard):.1f}% of the training positions" in caplog.text


def test_a_restored_model_hears_in_the_windows_of_training(trained, long_folder):
    config = json.loads((trained.output_dir / "model" / "config.json").read_text())
    assert config["audio_window_buckets"] == [2, 3, 4] and config["audio_window_seconds"] == 4
    assert evaluate_run(trained.output_dir)["loss"] == pytest.approx(trained.metrics["test"]["loss"], rel=1e-5)
    rows = [json.loads(line) for line in (trained.output_dir / "predictions.jsonl").read_text().splitlines()]
    found = list(predict_files(trained.output_dir, [str(long_folder / "test")], predict_window="auto"))
    assert [row["prediction"] for row in found] == [row["prediction"] for row in rows]
    assert [row["confidence"] for row in found] == pytest.approx([row["confidence"] for row in rows], abs=1e-5)


def test_a_model_trained_again_in_one_window_forgets_its_buckets(trained, make, tmp_path):
    model = str(trained.output_dir / "model")
    again = finetune(make(model__name=model, task__window="auto", train__max_steps=1, output_dir=str(tmp_path / "b")))
    _, task, _ = open_trained(again.output_dir)
    assert task.family.windows == (4.0,)


def test_only_a_model_that_was_trained_in_buckets_predicts_in_them(make, tmp_path, long_folder):
    with pytest.raises(RecipeError, match="predict_window: buckets requires a model trained with window: buckets"):
        make(task__window="auto", task__predict_window="buckets")
    one = finetune(make(task__window="auto", train__max_steps=1, output_dir=str(tmp_path / "one")))
    with pytest.raises(RecipeError, match="inaccurate with shorter windows"):
        list(predict_files(one.output_dir, [str(long_folder / "test")], predict_window="buckets"))


@pytest.mark.parametrize("window", [long("full"), "auto", long("buckets")])
def test_transcripts_do_not_depend_on_the_batch(trained, long_folder, window):
    inputs = [str(long_folder / split) for split in ("test", "train")]
    alone, *others = (
        list(predict_files(trained.output_dir, inputs, batch_size=size, predict_window=window)) for size in (1, 3, 16)
    )
    assert len({row["prediction"] for row in alone}) > 3
    for rows in others:
        assert [row["prediction"] for row in rows] == [row["prediction"] for row in alone]
        assert [row["confidence"] for row in rows] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)


def test_predict_in_buckets_hears_no_more_seconds_than_a_recording_needs(trained, long_folder, monkeypatch):
    from sft_hf.tasks.speech import seq2seq_family

    heard = []
    plain = seq2seq_family.whisper_window

    def whisper_window(model, frames):
        heard.append(frames)
        return plain(model, frames)

    monkeypatch.setattr(seq2seq_family, "whisper_window", whisper_window)
    inputs = [str(long_folder / "test" / name) for name in ("00.wav", "24.wav", "03.wav")]
    for window, frames in (("full", [400]), ("auto", [200, 400]), ("buckets", [200, 400])):
        heard.clear()
        list(predict_files(trained.output_dir, inputs, predict_window=window))
        assert heard == frames, window


def test_writing_stops_when_every_row_of_a_batch_has_ended(trained, long_folder):
    _, task, model = open_trained(trained.output_dir, predict_window="auto")
    rows = [{"audio": str(path)} for path in sorted((long_folder / "test").glob("*.wav"))[:3]]
    examples = task.reader.prepare_inputs(rows)
    passes = []
    model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        outputs = task.predict_batch(model, task.collate([examples.features[index] for index in range(3)]))
    longest = int((outputs["tokens"] >= 0).sum(dim=1).max())
    assert longest < task.family.max_new_tokens
    assert len(passes) == longest + 2  # a token each, the end, and all of them once more for the confidence
