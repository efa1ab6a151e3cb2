"""A full disk ends a run with exit code 74, and its last checkpoint is whole: real file systems, real limits."""

from __future__ import annotations

import os
import resource
import subprocess
from contextlib import suppress

import pytest
from tiers import long

from sft_hf.engine.resume.checkpoint import newest_checkpoint

BYTES = 60_000  # more than the log takes, less than the weights


def arguments_for(recipe_file, folder, *more):
    return ("finetune", str(recipe_file), "train.num_train_epochs=50", *more, "--output-dir", str(folder))


def check_and_resume(commands, folder, said, recipe_file):
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(folder) in errors[0] and "cannot be written" in errors[0], said
    assert "Traceback" not in said
    found, passed_over = newest_checkpoint(folder / "checkpoints")
    assert found is not None and not passed_over
    assert not list((folder / "checkpoints").glob(".*"))
    again = commands.start(*arguments_for(recipe_file, folder, "--resume"))
    again.wait_until(lambda: (folder / "checkpoints" / f"step-{int(found.name[5:]) + 4:06d}").exists())
    again.kill()
    again.wait()
    assert f"resuming from {found.name}" in again.said()


@pytest.mark.parametrize("ranks", [1, long(2)])
def test_a_file_that_may_not_grow(commands, recipe_file, tmp_path, ranks):
    """RLIMIT_FSIZE, set from outside while the run is going on."""
    folder = tmp_path / "run"
    batch = f"train.per_device_train_batch_size={8 // ranks}"
    running = commands.start_ranks(ranks, *arguments_for(recipe_file, folder, batch))
    running[0].wait_until(lambda: (folder / "checkpoints" / "step-000004").is_dir())
    for rank in running:
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (BYTES, BYTES))
    assert [rank.wait() for rank in running] == [74] * ranks, running[-1].said()
    if ranks == 1:
        check_and_resume(commands, folder, running[0].said(), recipe_file)
    else:
        assert "error: " in running[0].said() and "Traceback" not in running[1].said()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root; RLIMIT_FSIZE stands for it above")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this machine lets even root mount nothing ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_system_that_is_full(commands, recipe_file, small_disk):
    folder = small_disk / "run"
    running = commands.start(*arguments_for(recipe_file, folder))
    running.wait_until(lambda: (folder / "checkpoints" / "step-000004").is_dir())
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):  # all the room that there is
        while True:
            file.write(b"\0" * 4096)
    assert running.wait() == 74, running.said()
    filler.unlink()
    check_and_resume(commands, folder, running.said(), recipe_file)
