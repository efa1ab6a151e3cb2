"""Headers that are wrong about the length, and formats that only ffmpeg reads."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile
from tiers import long

from sft_hf.core.errors import DataError
from sft_hf.tasks.speech import ffmpeg
from sft_hf.tasks.speech.audio import audio_info, read_audio

RATE = 16_000
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def noise(seconds, loudness=0.3, seed=0):
    return (loudness * np.random.default_rng(seed).uniform(-1, 1, round(RATE * seconds))).astype(np.float32)


def wav(samples, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", **options)
    return buffer.getvalue()


def with_data_size(content, size):
    place = content.index(b"data") + 4
    return content[:place] + struct.pack("<I", size) + content[place + 4 :]


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_file_written_to_a_pipe_is_read_to_its_end(size, subtype):
    samples = noise(1.5)
    content = wav(samples, subtype=subtype)
    info = audio_info(with_data_size(content, size))
    assert info.seconds == pytest.approx(1.5, abs=0.01) and info.promised is None
    assert np.array_equal(read_audio(with_data_size(content, size), RATE)[:20_000], read_audio(content, RATE)[:20_000])


@pytest.mark.parametrize("cut", [0.25, 0.8])
def test_a_wav_file_that_ends_early_is_used_and_said(cut):
    content = wav(noise(2.0))
    info = audio_info(content[: round(len(content) * cut)])
    assert info.seconds == pytest.approx(2 * cut, abs=0.01)
    assert info.promised == 32_000


def frames_of_mp3(content):
    """The frames of an MPEG 2 layer 3 stream of 16 kHz, without the first, which holds their number."""
    kilobits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    place, frames = content.index(b"\xff\xf3"), []
    while place + 4 < len(content) and content[place] == 0xFF:
        size = 72 * kilobits[content[place + 2] >> 4] * 1000 // RATE + (content[place + 2] >> 1 & 1)
        frames.append(content[place : place + size])
        place += size
    return b"".join(frames[1:])


def mp3(samples, level):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="MP3", compression_level=level, bitrate_mode="CONSTANT")
    return buffer.getvalue()


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_file_of_varying_bit_rate_without_a_header_has_the_length_that_it_decodes_to(loud_first):
    loud, quiet = frames_of_mp3(mp3(noise(1.0), 0.0)), frames_of_mp3(mp3(noise(4.0, 0.01), 0.9))
    content = loud + quiet if loud_first else quiet + loud
    samples = read_audio(content, RATE)
    assert len(samples) / RATE == pytest.approx(5.0, abs=0.3)  # libsndfile's guess: 1.6 or 12 s
    assert audio_info(content).seconds == len(samples) / RATE
    part = read_audio({"bytes": content, "path": "a.mp3"}, RATE, start=1.25, end=2.0)
    assert np.array_equal(part, samples[20_000:32_000])


@pytest.mark.parametrize("tag", [0, 200_000])
def test_an_mp3_file_that_ends_early_is_used_and_said(tag):
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(4.0), RATE, format="MP3", bitrate_mode="VARIABLE")
    size = bytes([tag >> 21 & 127, tag >> 14 & 127, tag >> 7 & 127, tag & 127])
    whole = b"ID3\x03\x00\x00" + size + bytes(tag) + buffer.getvalue()
    assert audio_info(whole).promised is None and audio_info(whole).seconds == pytest.approx(4.0, abs=0.2)
    info = audio_info(whole[: tag + len(buffer.getvalue()) // 2])
    assert info.seconds < 3 and (info.promised is None or info.promised / RATE == pytest.approx(4.0, abs=0.2))


def flac_of_unknown_length(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC")
    content = bytearray(buffer.getvalue())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def test_a_flac_stream_of_unknown_length_is_decoded(tmp_path):
    samples = noise(2.5)
    (tmp_path / "pipe.flac").write_bytes(flac_of_unknown_length(samples))
    decoded = read_audio(tmp_path / "pipe.flac", RATE)
    assert decoded == pytest.approx(samples, abs=1e-4)
    assert np.array_equal(read_audio(tmp_path / "pipe.flac", RATE, start=1, end=1.5), decoded[16_000:24_000])


def test_decoding_stops_at_the_limit_where_the_length_is_unknown():
    info = audio_info(flac_of_unknown_length(np.zeros(RATE * 600, dtype=np.float32)), limit=2.0)
    assert info.more and info.seconds < 120


def test_a_file_that_changes_is_decoded_again(tmp_path):
    for seconds in (1.0, 2.0):
        (tmp_path / "a.flac").write_bytes(flac_of_unknown_length(noise(seconds)))
        assert audio_info(tmp_path / "a.flac").seconds == seconds


def converted(path, samples, *options):
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "f32le", "-ar", str(RATE), "-ac", "1", "-i", "-"]
    subprocess.run([*command, *options, str(path)], input=samples.tobytes(), check=True)
    return path


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.m4a", ()),
        ("a.aac", ()),
        ("a.wma", ()),
        ("movie.mp4", ("-f", "lavfi", "-i", "color=size=32x32:duration=1", "-c:v", "mpeg4")),
        ("no_header.g722", ("-ar", "16000")),  # recognized by its name alone
        ("called_wav_but_alac.wav", ("-c:a", "alac", "-f", "mp4")),
    ],
)
def test_what_libsndfile_does_not_read_ffmpeg_does(tmp_path, name, options):
    time = np.arange(RATE) / RATE
    samples = (0.4 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    path = converted(tmp_path / name, samples, *options)
    info = audio_info(path)
    assert info.decoder == "ffmpeg" and info.seconds == pytest.approx(1.0, abs=0.2)
    decoded = read_audio(path, RATE)
    assert np.abs(np.fft.rfft(decoded)).argmax() * RATE / len(decoded) == pytest.approx(440, abs=5)
    cell = {"bytes": path.read_bytes(), "path": path.name}
    assert len(read_audio(cell, RATE)) == len(decoded)


@needs_ffmpeg
def test_noise_without_a_header_is_not_taken_for_a_recording(tmp_path):
    content = np.random.default_rng(0).bytes(6600)
    for name in ("a.wav", "a.bin", "a.m4a"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a recording that can be read"):
            audio_info(tmp_path / name)


@needs_ffmpeg
def test_without_ffmpeg_the_error_says_what_is_missing(tmp_path, monkeypatch):
    path = converted(tmp_path / "a.m4a", noise(0.5))
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"a\.m4a: .*Install ffmpeg"):
        audio_info(path)


@needs_ffmpeg
@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile:///tmp/other.wav\n",
        "ffconcat version 1.0\nfile other.wav\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
)
def test_playlists_are_not_followed(tmp_path, content):
    (tmp_path / "other.wav").write_bytes(wav(noise(0.5)))
    (tmp_path / "list.m4a").write_text(content)
    with pytest.raises(DataError, match="not a recording that can be read"):
        audio_info(tmp_path / "list.m4a")


@needs_ffmpeg
def test_a_decoder_that_gives_nothing_is_ended(tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")  # not a child of its own, which would hold the pipe for a minute
    fake.chmod(0o755)
    (tmp_path / "a.m4a").write_bytes(b"x" * 100)
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: str(fake))
    monkeypatch.setattr(ffmpeg, "SILENT_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"gave nothing for 0\.2 s"):
        audio_info(tmp_path / "a.m4a")


@pytest.mark.parametrize("count", [8, long(30)])
def test_damaged_headers_are_an_error_in_a_line(count):
    generator = np.random.default_rng(0)
    content = wav(noise(0.2))
    for _ in range(count):
        changed = bytearray(content)
        for place in generator.integers(0, 60, 6):
            changed[place] = generator.integers(0, 256)
        try:
            read_audio(bytes(changed), RATE)
        except DataError as error:
            assert "\n" not in str(error)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["silent.mp4", "silent.mkv"])
def test_a_video_without_sound_is_said_to_be_one(tmp_path, name):
    command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", "color=size=32x32:duration=0.2"]
    subprocess.run([*command, "-c:v", "mpeg4", str(tmp_path / name)], check=True)
    with pytest.raises(DataError, match="no sound") as error:
        audio_info(str(tmp_path / name))
    assert "map" not in str(error.value)


def test_a_link_to_nothing_says_where_it_leads(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "gone.wav")
    with pytest.raises(DataError, match=r"link to .*gone\.wav"):
        audio_info(str(tmp_path / "a.wav"))
