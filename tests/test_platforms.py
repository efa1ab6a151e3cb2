"""What differs between Linux, macOS and Windows; where only Linux is at hand, as far as it can be made to look so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import demo_wheel
import psutil
import pytest
import torch
from tiers import long
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hf.cli import common
from sft_hf.core import console, fail_points, filesystem
from sft_hf.core.errors import RecipeError
from sft_hf.core.run.folder import LOCK, RunLock
from sft_hf.engine import loop, process
from sft_hf.jobs.finetune import finetune


@pytest.mark.long
def test_windows_imports_trains_saves_and_resumes(recipe_file, tmp_path):
    """Each difference alone is tested below."""

    for name in ("links", "runs"):
        (tmp_path / name).mkdir()
    sha256 = demo_wheel.write_wheel(tmp_path / "links")
    arguments = [str(recipe_file), str(tmp_path / "runs"), "pypi://demo==1.0/demo/model", sha256]
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "links")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("like_windows.py")), *arguments],
        env={**os.environ, **pip, "SFT_HF_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] > 150
    assert (Path(found["wheel"]) / "config.json").is_file()
    assert found["stopped"] and found["same_weights"]
    assert found["peak_memory_bytes"] > 2**26
    assert not found["line_ends"]


def test_a_folder_is_not_synced_on_windows(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(filesystem, "WINDOWS", True)
    monkeypatch.setattr(filesystem.os, "fsync", opened.append)
    filesystem.sync(tmp_path)
    assert not opened
    (tmp_path / "file").touch()
    filesystem.sync(tmp_path / "file")
    assert len(opened) == 1


def test_a_locked_file_is_left_for_the_lock_to_delete(tmp_path, monkeypatch):
    monkeypatch.setattr("sft_hf.core.run.folder.WINDOWS", True)
    lock = RunLock(tmp_path)
    lock.acquire()
    monkeypatch.setattr(lock, "_lock", SimpleNamespace(is_locked=True, release=lambda: None))
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_fail_point_ends_a_process_without_sigkill(monkeypatch):
    sent = []
    monkeypatch.delattr(signal, "SIGKILL")
    monkeypatch.setattr(fail_points.os, "kill", lambda pid, number: sent.append(number))
    monkeypatch.setenv(fail_points.VARIABLE, "here:1")
    monkeypatch.setattr(fail_points, "_reached", fail_points.Counter())
    fail_points.reach("here")
    assert sent == [signal.SIGTERM]


def test_peak_memory_where_there_is_neither_proc_nor_getrusage(monkeypatch):
    def no_file(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(process, "open", no_file, raising=False)
    assert process.peak_resident_bytes() > 2**26  # getrusage
    monkeypatch.setitem(sys.modules, "resource", None)
    assert process.peak_resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7, rss=5))
    monkeypatch.setattr(process.psutil, "Process", lambda: windows)
    assert process.peak_resident_bytes() == 7


@pytest.mark.parametrize(
    "words",
    [
        "MPS backend out of memory (MPS allocated: 8.99 GB, other allocations: 1 GB, max allowed: 9.07 GB).",
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9.",
    ],
)
def test_out_of_memory_in_the_words_of_other_devices(words):
    assert process.is_out_of_memory(RuntimeError(words))
    assert not process.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_precision_that_a_device_has_not(monkeypatch):
    def refuse(**_):
        raise ValueError("bf16 mixed precision requires a supported device.")

    monkeypatch.setattr(process, "Accelerator", refuse)
    with pytest.raises(RecipeError, match=r"train\.mixed_precision: bf16"):
        process.build_accelerator("bf16", 1)


def test_a_path_on_another_drive_is_shown_whole(monkeypatch):
    def other_drive(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(common.os.path, "relpath", other_drive)
    assert common.short_path("/runs/text") == "/runs/text"


def test_pipes_are_utf8_on_windows():
    code = (
        "import os; from sft_hf.core import console; import sys\n"
        "console.os = type('os', (), {'name': 'nt', 'environ': os.environ})\n"
        "console.write_utf8(); print(sys.stdout.encoding, sys.stdin.encoding)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["utf-8", "utf-8"]
    assert console.os is os


class NoDouble(TorchDispatchMode):
    """Refuses float64, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), func
        return result


@pytest.mark.parametrize("techniques", ["ema class_weights", long("swa logit_adjustment"), long("mixup bootstrapping")])
def test_a_device_computes_no_double(make_recipe, monkeypatch, techniques):
    step, steps = loop.train_step, []

    def without_double(*arguments):
        with NoDouble():
            steps.append(step(*arguments))
        return steps[-1]

    monkeypatch.setattr(loop, "train_step", without_double)
    finetune(make_recipe(techniques=[{"name": name} for name in techniques.split()], train__max_steps=2))
    assert len(steps) == 2
