"""SpecAugment: where masks lie and what they hold; a run's rows, other ones in each epoch."""

from types import SimpleNamespace

import numpy as np
import pytest

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.jobs.finetune import finetune
from sft_hf.techniques.regularization.settings import SpecAugmentSettings
from sft_hf.techniques.regularization.spec_augment import SpecAugment, draw_masks, masked


def test_masks_hold_the_mean_and_the_rest_stays():
    spectrogram = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    found = masked(spectrogram, [(2, 3)], [(0, 1)])
    for band in range(6):
        for frame in range(9):
            hidden = 2 <= frame < 5 or band == 0
            assert found[band, frame] == (spectrogram.mean() if hidden else spectrogram[band, frame])


def test_widths_are_even_and_masks_lie_within():
    masks = draw_masks(20, 3000, 5, np.random.default_rng(0))
    widths = np.bincount([width for _, width in masks])
    assert len(widths) == 6 and widths.min() > 400  # 0 to 5, as the paper draws them
    assert all(first >= 0 and first + width <= 20 for first, width in masks)
    assert {first for first, width in masks if width == 5} == set(range(16))
    assert draw_masks(3, 1, 10, np.random.default_rng(0))[0][1] <= 3


@pytest.mark.parametrize(
    ("settings", "frames", "bands"),
    [
        ({"num_time_masks": 1, "time_mask_ratio": 0.1, "num_frequency_masks": 0}, 10, 0),
        ({"num_time_masks": 3, "time_mask_ratio": 0.1, "num_frequency_masks": 0}, 30, 0),
        ({"num_time_masks": 0, "num_frequency_masks": 1, "frequency_mask_width": 4}, 0, 4),
        ({"num_time_masks": 0, "num_frequency_masks": 2, "frequency_mask_width": 4}, 0, 8),
    ],
)
def test_settings_say_how_many_spans_there_are_and_how_wide(settings, frames, bands):
    context = SimpleNamespace(task=SimpleNamespace(family=SimpleNamespace(is_whisper=True)))
    technique = SpecAugment(SpecAugmentSettings(**settings), context)
    spectrogram = np.random.default_rng(0).normal(size=(40, 101)).astype(np.float32)
    spectrogram[:, -1] = 50  # has no part in the mean
    most = [0, 0]
    for seed in range(800):
        found = technique.change_row({"features": spectrogram}, np.random.default_rng(seed))["features"]
        hidden = found != spectrogram
        assert np.allclose(found[hidden], spectrogram[:, :-1].mean())
        most = [max(most[0], hidden.all(axis=0).sum()), max(most[1], hidden[:, :-1].all(axis=1).sum())]
    assert most[0] <= frames and most[1] <= bands
    # More than one span fewer could hide: every span is drawn, up to its full width.
    assert most[0] > 0.7 * frames or not frames
    assert most[1] > 0.7 * bands or not bands


def test_a_run_sees_other_masks_in_each_epoch(make_speech_recipe, monkeypatch):
    seen = []
    plain = loop.train_step

    def watched(training, examples, window, state):
        row = window.rows()[0]
        seen.append((int(examples.row_ids[row]), state.epoch, np.asarray(examples.features[row]["features"])))
        return plain(training, examples, window, state)

    monkeypatch.setattr(loop, "train_step", watched)
    quiet = {"task__speed_factors": [1.0], "task__noise_probability": 0.0, "data__max_train_samples": 1}
    finetune(make_speech_recipe(techniques=["spec_augment"], **quiet))
    (first, second) = (features for _, _, features in seen)
    assert first.shape == second.shape and not np.array_equal(first, second)
    assert np.array_equal(first[:, -1], second[:, -1])


@pytest.mark.parametrize("make", ["make_recipe", "make_image_recipe"])
def test_other_tasks_have_no_spectrogram(make, request):
    with pytest.raises(RecipeError, match=r"spec_augment cannot be combined with .*spectrogram"):
        request.getfixturevalue(make)(techniques=["spec_augment"])
