"""What happens to a clip's sound, and that it only depends on what it should."""

from __future__ import annotations

import numpy as np
import pytest

from sft_hf.tasks.speech.rows import Augmentation, add_noise, change_speed, clip_generator

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_changes_duration_and_pitch_alike(factor):
    changed = change_speed(TONE, factor, RATE)
    assert len(changed) == pytest.approx(RATE / factor, abs=2)
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed))))
    assert spectrum.argmax() * RATE / len(changed) == pytest.approx(1000 * factor, abs=3)
    assert factor != 1.0 or np.array_equal(changed, TONE)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_is_as_loud_as_asked(snr_db):
    noise = add_noise(TONE, snr_db, np.random.default_rng(0)).astype(np.float64) - TONE
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.2)
    silence = np.zeros(100, dtype=np.float32)
    assert np.array_equal(add_noise(silence, snr_db, np.random.default_rng(0)), silence)


def test_what_happens_is_a_function_of_seed_epoch_and_row():
    augmentation = Augmentation((0.9, 1.0, 1.1), (0.0, 20.0), 0.5)

    def clip(*where):
        return augmentation.apply(TONE, RATE, clip_generator(*where))

    assert np.array_equal(clip(1, 2, 3), clip(1, 2, 3))
    different = [clip(1, 2, row) for row in range(20)]
    assert len({(len(samples), samples[:100].tobytes()) for samples in different}) > 10
    assert {round(RATE / len(samples), 1) for samples in different} == {0.9, 1.0, 1.1}
    assert any(not np.array_equal(clip(1, 2, row), clip(1, 3, row)) for row in range(20))
    assert any(not np.array_equal(clip(1, 2, row), clip(2, 2, row)) for row in range(20))


def test_nothing_asked_is_nothing_done():
    assert not Augmentation()
    assert not Augmentation((1.0,), (10.0, 30.0), 0.0)
    assert Augmentation((1.0,), (10.0, 30.0), 0.1) and Augmentation((0.9, 1.1))
