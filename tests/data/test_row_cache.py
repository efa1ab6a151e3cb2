"""What is made of rows and kept on the disk: found again, bounded, and never what a run depends on."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from small_runs import stop, weights
from tiers import quick
from tiny_data import TOPICS

from sft_hf.data import row_cache
from sft_hf.data.row_cache import RowCache
from sft_hf.jobs.finetune import finetune
from sft_hf.tasks.speech import rows as speech_rows
from sft_hf.tasks.speech.seq2seq_family import Seq2SeqFamily
from sft_hf.tasks.text import tokens

ROW = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7])]
STREAM = {
    "data__streaming": True,
    "data__label_names": list(TOPICS),
    "data__validation_fraction": 0,
    "train__max_steps": 1,
}
MAKERS = ["make_recipe", "make_speech_recipe"]


@pytest.fixture(autouse=True)
def folder(own_cache, monkeypatch):
    """Where rows lie, in folders by kind; the smallest things are kept, too."""
    monkeypatch.setattr(row_cache, "WORTH_BYTES", 1)
    return own_cache


def cache_of(made_by="this", gigabytes=1.0):
    return RowCache("kind", {"what": made_by}, ("numpy",), gigabytes)


def kept(*names, **options):
    cache = cache_of(**options)
    for name in names:
        cache.keep(name, ROW)
    cache.flush()
    return cache


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_arrays_are_found_by_what_made_them_and_what_of():
    for cache in (kept("a", "b"), cache_of()):
        for name in "ab":
            found = cache.find(name)
            assert all(
                np.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(found, ROW, strict=True)
            )
        assert cache.find("c") is None
    assert cache_of("that").find("a") is None


def test_other_versions_and_processors_make_rows_anew(monkeypatch):
    kept("a")
    with monkeypatch.context() as patch:
        patch.setattr(row_cache.metadata, "version", lambda name: "0.1")
        assert cache_of().find("a") is None
    with monkeypatch.context() as patch:
        patch.setattr(row_cache.torch.backends.cpu, "get_cpu_capability", lambda: "another")
        assert cache_of().find("a") is None
    assert cache_of().find("a") is not None


def test_what_is_small_is_not_written(folder, monkeypatch):
    monkeypatch.setattr(row_cache, "WORTH_BYTES", 1000)
    kept(*"abc")
    assert not folder.exists()
    kept(*map(str, range(40)))
    assert cache_of().find("39") is not None


def test_one_process_of_a_run_writes(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    kept("a")
    assert not folder.exists()


def test_no_more_is_kept_than_there_is_room_for(folder):
    size = sum(array.nbytes for array in ROW)
    cache = kept(*"abc", gigabytes=2.5 * size / 1e9)
    assert [cache.find(name) is not None for name in "abc"] == [True, True, False]


def test_half_of_a_disk_that_is_nearly_full_is_left(monkeypatch):
    monkeypatch.setattr(row_cache, "free_bytes", lambda path: 3 * sum(array.nbytes for array in ROW))
    cache = kept(*"ab")
    assert cache.find("a") is not None and cache.find("b") is None


def test_what_was_used_longest_ago_makes_room(folder):
    kept("a", made_by="old")
    (shard,) = folder.glob("*/*/*")
    os.utime(shard, (10**9, 10**9))
    size = sum(file.stat().st_size for file in shard.iterdir())
    kept("a", made_by="new", gigabytes=1.5 * size / 1e9)
    assert cache_of("old").find("a") is None and cache_of("new").find("a") is not None


def test_a_full_disk_only_costs_the_cache(monkeypatch, caplog):
    monkeypatch.setattr("sft_hf.data.row_store.np.save", full_disk)
    cache = kept("a")
    assert "row cache disabled" in caplog.text and "No space left" in caplog.text
    cache.keep("b", ROW)
    cache.flush()
    assert cache.find("a") is None and caplog.text.count("row cache disabled") == 1


def test_damaged_rows_are_made_anew(folder, caplog):
    kept("a")
    (file,) = folder.glob("*/*/*/0.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    cache = kept("a")
    assert "corrupt; recomputing" in caplog.text
    assert np.array_equal(cache.find("a")[0], ROW[0])


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", quick(["make_recipe"], MAKERS))
def test_a_second_run_makes_nothing_anew_and_writes_the_same_model(maker, request, tmp_path, monkeypatch, folder):
    make = request.getfixturevalue(maker)
    changes = {"train__max_steps": 3} | ({"task__max_length": 6} if maker == "make_recipe" else {})  # some are cut
    runs = [finetune(make(output_dir=str(tmp_path / "none" / "run"), row_cache_gb=0, **changes))]
    assert not folder.exists()
    runs.append(finetune(make(output_dir=str(tmp_path / "first" / "run"), **changes)))
    monkeypatch.setattr(tokens, "_encode_all", None)
    monkeypatch.setattr(Seq2SeqFamily, "extract", None)
    monkeypatch.setattr(speech_rows, "read_audio", None)
    runs.append(finetune(make(output_dir=str(tmp_path / "second" / "run"), **changes)))
    first, *others = ({path.name: path.read_bytes() for path in (run.output_dir / "model").iterdir()} for run in runs)
    assert len(first) > 4
    for other in others:
        assert [name for name in {**first, **other} if first.get(name) != other.get(name)] in ([], ["README.md"])
    assert runs[0].metrics["test"] == runs[1].metrics["test"] == runs[2].metrics["test"]


def test_a_recording_that_changed_is_decoded_again(
    make_speech_recipe, speech_folder, tmp_path, speech_clip, monkeypatch
):
    import soundfile

    data = tmp_path / "data"
    shutil.copytree(speech_folder, data)
    finetune(make_speech_recipe(data__name=str(data), train__max_steps=1))
    changed = min((data / "train").glob("*.wav"))
    soundfile.write(changed, speech_clip("one", 99), 16_000)
    read, plain = [], speech_rows.read_audio
    monkeypatch.setattr(speech_rows, "read_audio", lambda file, *a, **k: read.append(file) or plain(file, *a, **k))
    finetune(make_speech_recipe(data__name=str(data), train__max_steps=1), overwrite=True)
    assert read == [str(changed)]


def test_augmented_clips_are_made_of_the_recordings(make_speech_recipe, tmp_path):
    changes = {"task__speed_factors": [0.9, 1.0, 1.1], "train__max_steps": 3}
    first, second = (
        weights(finetune(make_speech_recipe(output_dir=str(tmp_path / name), **changes)).output_dir) for name in "ab"
    )
    assert all((first[name] == second[name]).all() for name in first)


def test_a_run_may_be_resumed_without_the_cache(make_recipe):
    stop(make_recipe(checkpoint__save_steps=1, train__max_steps=4), 2, RuntimeError())
    again = finetune(make_recipe(checkpoint__save_steps=1, train__max_steps=4, row_cache_gb=0), resume=True)
    assert again.metrics["train"]["num_steps"] == 4


def test_a_stream_has_no_cache(make_recipe, folder):
    finetune(make_recipe(**STREAM))
    assert not folder.exists()
