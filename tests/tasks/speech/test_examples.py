"""What a recognizer is trained on: losses, lengths, windows and augmented clips."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from speech_examples import FAMILIES, opened


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
