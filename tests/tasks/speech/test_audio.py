"""Recordings of every kind, and what is wrong with those that are none."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import soundfile

from sft_hf.core.errors import DataError
from sft_hf.tasks.speech.audio import audio_info, find_audio, read_audio


def tone(rate, seconds=0.5, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def loudest_frequency(samples, rate):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate / len(samples)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_number_of_channels_becomes_mono_at_the_models_rate(tmp_path, rate, channels):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(tone(rate)[:, None], (1, channels)), rate)
    samples = read_audio(path, 16_000)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 8_000) <= 2
    assert loudest_frequency(samples, 16_000) == pytest.approx(440, abs=3)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)
    info = audio_info(path)
    assert (info.rate, info.channels, info.seconds) == (rate, channels, pytest.approx(0.5, abs=1e-3))


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".aiff"])
def test_compressed_formats(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(16_000, 1.0), 16_000)
    assert loudest_frequency(read_audio(path, 16_000), 16_000) == pytest.approx(440, abs=3)


def test_channels_are_averaged(tmp_path):
    left, right = tone(16_000), tone(16_000, frequency=1000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav", 16_000) == pytest.approx((left + right) / 2, abs=1e-6)


def test_a_part_of_a_recording(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav", 16_000, start=0.25, end=0.5), samples[4000:8000])
    assert np.array_equal(read_audio(tmp_path / "a.wav", 16_000, start=0.75, end=9), samples[12_000:])


def test_bytes_as_the_sets_of_the_hub_have_them(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(16_000), 16_000, format="WAV")
    for recording in (buffer.getvalue(), {"bytes": buffer.getvalue(), "path": "x.wav"}):
        assert len(read_audio(recording, 16_000)) == 8000
    (tmp_path / "x").write_bytes(buffer.getvalue())  # by its content, whatever it is called
    assert len(read_audio({"bytes": None, "path": str(tmp_path / "x")}, 16_000)) == 8000
    (tmp_path / "y.raw").write_bytes(buffer.getvalue())
    assert len(read_audio(tmp_path / "y.raw", 16_000)) == 8000


def write_wav(path, samples, **options):
    soundfile.write(path, samples, 16_000, **options)
    return path.read_bytes()


def test_what_is_wrong_is_said_in_a_line(tmp_path):
    whole = write_wav(tmp_path / "good.wav", tone(16_000, 2.0))
    flac = write_wav(tmp_path / "good.flac", np.random.default_rng(0).uniform(-1, 1, 32_000))
    write_wav(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1], dtype=np.float32), subtype="FLOAT")
    write_wav(tmp_path / "silent.wav", np.zeros(0, dtype=np.float32))
    cases = {
        "silent.wav": (None, ["holds no audio"]),
        "nan.wav": (None, ["NaN"]),
        "empty.wav": (b"", ["is an empty file"]),
        "text.wav": (b"this is no sound at all, but a text\n" * 9, ["is not a recording that can be read", "WAV"]),
        "cut.flac": (flac[: len(flac) // 2], ["cut.flac"]),
        "header.wav": (whole[:20], ["header.wav"]),
        "slow.wav": (whole[:24] + (1).to_bytes(4, "little") + whole[28:], ["sampling rate 1 Hz"]),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_audio(tmp_path / name, 16_000)
        assert all(word in str(caught.value) for word in [name, *words]), caught.value
        assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    write_wav(tmp_path / "clip.wav", tone(16_000))
    with pytest.raises(DataError, match=r"clp\.wav: no such file; did you mean clip\.wav"):
        read_audio(tmp_path / "clp.wav", 16_000)
    with pytest.raises(DataError, match="no such file"):
        read_audio(tmp_path / "nowhere" / "x.wav", 16_000)
    with pytest.raises(DataError, match="not its folder"):
        read_audio(tmp_path, 16_000)
    for nothing, words in ((None, "nothing"), ("", "nothing"), ({"bytes": None, "path": None}, "nothing"), (7, "int")):
        with pytest.raises(DataError, match=f"there is {words} where"):
            read_audio(nothing, 16_000)


def test_two_hours_are_known_from_the_header_alone(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8000, 1) as file:
        for _ in range(72):
            file.write(np.zeros(800_000, dtype=np.float32))
    assert audio_info(tmp_path / "long.flac").seconds == 7200


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(DataError, match="is a folder or device"):
            audio_info(path)


def test_folders_are_searched_for_recordings(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.wav", "1.FLAC", "notes.txt", "a.wav", "._a.wav"):  # macOS leaves such a one beside each file
        (tmp_path / name).write_bytes(b"x")
    assert [str(path.relative_to(tmp_path)) for path in find_audio(tmp_path)] == ["1.FLAC", "a.wav", "b/2.wav"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no recordings"):
        find_audio(tmp_path / "none")
