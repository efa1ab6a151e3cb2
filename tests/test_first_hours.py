"""What meets a newcomer: one command for a job that is requeued, Ctrl-C in Python, a log in notebooks."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from small_runs import Killed, read_rows, stop

import sft_hf
from sft_hf.cli import run
from sft_hf.core import console
from sft_hf.core.errors import RecipeError, RunFolderError, Terminated
from sft_hf.engine import loop
from sft_hf.engine.resume.checkpoint import newest_checkpoint
from sft_hf.jobs.finetune import finetune
from sft_hf.publishing.installing import VARIABLE, install_line


@pytest.fixture
def recipe_path(make_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    recipe = make_recipe(train__max_steps=4, checkpoint__save_steps=1, output_dir=str(tmp_path / "out"))
    path.write_text(recipe.to_yaml())
    return str(path)


# --- resuming ----------------------------------------------------------------------------------------------------


def test_one_command_starts_continues_and_ends(recipe_path, tmp_path, capsys):
    command = ["finetune", recipe_path, "--auto-resume"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".recipe.yaml.tmp").write_text("killed before the first line")
    stop(sft_hf.load_recipe(recipe_path), 2, Killed())
    assert newest_checkpoint(tmp_path / "out" / "checkpoints")[0].name == "step-000002"
    for words in ("resuming from step-000002", "nothing to resume"):
        assert run(command) == 0
        assert words in capsys.readouterr().err
    assert [line["step"] for line in read_rows(tmp_path / "out" / "log.jsonl") if "loss" in line][-1] == 4


def test_a_run_killed_before_its_first_checkpoint_is_started_again(recipe_path, tmp_path, capsys):
    stop(sft_hf.load_recipe(recipe_path), 0, Killed())
    assert (tmp_path / "out" / "recipe.yaml").is_file() and not list((tmp_path / "out").glob("checkpoints/step*"))
    assert run(["finetune", recipe_path, "--auto-resume"]) == 0
    assert "starting from the first step" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["train"]["num_steps"] == 4


def test_auto_resume_does_not_replace_other_files(make_recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    recipe = make_recipe(output_dir=str(tmp_path / "out"))
    with pytest.raises(RunFolderError, match="not empty"):
        finetune(recipe, resume="auto")
    with pytest.raises(RunFolderError, match="give one of"):
        finetune(recipe, resume="auto", overwrite=True)


def test_resume_takes_the_recipe_of_the_run(recipe_path, tmp_path, capsys):
    folder = str(tmp_path / "out")
    stop(sft_hf.load_recipe(recipe_path), 2, Killed())
    assert run(["finetune", "--resume", "--output-dir", folder, "seed=7"]) == 2
    assert "seed was 42 and is now 7" in capsys.readouterr().err
    assert run(["finetune", "--resume", "--output-dir", folder]) == 0
    assert "resuming from step-000002" in capsys.readouterr().err
    assert run(["finetune", "--auto-resume", "--output-dir", str(tmp_path / "none")]) == 2
    assert "no run was started here" in capsys.readouterr().err.splitlines()[-1]
    assert run(["finetune", "--output-dir", folder]) == 2
    assert "name of a recipe" in capsys.readouterr().err.splitlines()[-1]


# --- Python ------------------------------------------------------------------------------------------------------


def interrupting(monkeypatch, number):
    step = loop.train_step

    def stepping(training, examples, window, state):
        if state.step == 2:
            os.kill(os.getpid(), number)
        return step(training, examples, window, state)

    monkeypatch.setattr(loop, "train_step", stepping)


def test_ctrl_c_in_python_ends_a_sweep_after_a_checkpoint(make_recipe, monkeypatch, tmp_path):
    interrupting(monkeypatch, signal.SIGINT)
    tried = []
    with pytest.raises(KeyboardInterrupt, match="resume=True") as caught:
        for number in range(3):  # as sweeps do, which go on after a trial that failed
            try:
                tried.append(number)
                finetune(make_recipe(train__max_steps=8, output_dir=str(tmp_path / str(number))))
            except Exception:
                continue
    assert tried == [0] and isinstance(caught.value.__cause__, Terminated)
    assert newest_checkpoint(tmp_path / "0" / "checkpoints")[0].name == "step-000003"


def test_sigterm_in_python_is_an_error_of_its_own(make_recipe, monkeypatch):
    interrupting(monkeypatch, signal.SIGTERM)
    with pytest.raises(Terminated):
        finetune(make_recipe(train__max_steps=8))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_ended_is_143_on_the_command_line(recipe_path, monkeypatch, capsys, number):
    interrupting(monkeypatch, number)
    assert run(["finetune", recipe_path]) == 143
    assert "a checkpoint is saved" in capsys.readouterr().err.splitlines()[-1]


def test_a_recipe_can_be_named(recipe_path, tmp_path):
    assert finetune(recipe_path).metrics["train"]["num_steps"] == 4
    with pytest.raises(RunFolderError, match=r"overwrite=True"):
        finetune(Path(recipe_path))
    with pytest.raises(RecipeError, match="did you mean text"):
        finetune("txt")


def test_what_the_package_has_can_be_listed():
    assert set(sft_hf.__all__) <= set(dir(sft_hf))
    assert (Path(sft_hf.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("train", "max_steps", "many", ["max_steps", "integer", "'many'"]),
        ("optim", "learning_rate", -1.0, ["learning_rate", "greater than 0"]),
        ("data", "text_colum", "x", ["text_colum", "did you mean text_column"]),
        (None, "seed", "x", ["seed", "integer"]),
        (None, "task", {"name": "nothing"}, ["task"]),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_assigned(make_recipe, section, name, value, words):
    recipe = make_recipe()
    before = recipe.to_yaml()
    target = getattr(recipe, section) if section else recipe
    with pytest.raises(RecipeError) as caught:
        setattr(target, name, value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert recipe.to_yaml() == before
    recipe.train.max_steps = 3
    assert recipe.train.max_steps == 3


@pytest.fixture
def no_logging(monkeypatch):
    """The package's log as Python has it where nothing was set up."""
    log = logging.getLogger("sft_hf")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(logging.root, "handlers", [])
    log.setLevel(logging.NOTSET)
    return log


def test_the_log_is_shown_once_where_nothing_was_set_up(no_logging, capsys):
    logging.root.handlers.clear()  # pytest's own
    for _ in range(2):
        console.show_log()
    no_logging.info("rows: %d", 3)
    assert capsys.readouterr().err == "rows: 3\n"


def test_the_log_is_shown_in_a_notebook_that_has_handlers_of_its_own(no_logging, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    logging.root.handlers.append(logging.StreamHandler())  # as Colab's, at the level WARNING
    console.show_log()
    no_logging.info("rows: %d", 3)
    assert capsys.readouterr().err == "rows: 3\n"


@pytest.mark.parametrize("choice", ["root handler", "level", "own handler"])
def test_a_programs_own_logging_is_left_alone(no_logging, choice):
    if choice == "root handler":
        logging.root.handlers.append(logging.StreamHandler())
    elif choice == "level":
        no_logging.setLevel(logging.ERROR)
    else:
        no_logging.addHandler(logging.NullHandler())
    before = list(no_logging.handlers), no_logging.level, no_logging.propagate
    console.show_log()
    assert (no_logging.handlers, no_logging.level, no_logging.propagate) == before


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_under_a_launcher_a_mistake_says_that_the_launchers_lines_follow(monkeypatch, capsys, variable):
    from sft_hf.cli import main

    monkeypatch.setattr("gc.freeze", lambda: None)
    for launched in (False, True):
        if launched:
            monkeypatch.setenv(variable, "no")
        with pytest.raises(SystemExit) as caught:
            main(["finetune", "textt"])
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2
        assert ("launcher" in lines[-1]) == launched and lines[0].startswith("error: ")


def test_the_help_names_the_environment(capsys):
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("SFT_HF_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_TOKEN", VARIABLE):
        assert name in out


def test_the_install_line_is_what_somebody_said(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    found: dict[str, list[str]] = {}
    monkeypatch.setattr(metadata, "metadata", lambda _: types.SimpleNamespace(get_all=found.get))
    assert "pip install sft-hf" not in install_line() and "repository" in install_line()
    found["Project-URL"] = ["Documentation, https://example.org/docs", "Repository, https://example.org/sft-hf.git"]
    assert install_line() == 'pip install "sft-hf @ git+https://example.org/sft-hf.git"'
    monkeypatch.setenv(VARIABLE, "pip install git+https://user:secret12345@example.org/x\n# more")
    assert "secret12345" not in install_line() and "\n" not in install_line()
