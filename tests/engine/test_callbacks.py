"""Callbacks: what they are told, how they stop a run, and what becomes of their exceptions."""

from __future__ import annotations

import json

import distributed_callbacks
import pytest
from two_processes import run_on_two_processes

from sft_hf.core.errors import UserError
from sft_hf.core.run.folder import RunFolder
from sft_hf.engine.callbacks import Callback, Callbacks
from sft_hf.engine.process import build_accelerator
from sft_hf.jobs.finetune import finetune


class Notes(Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.lines, self.evaluations, self.steps = [], [], []

    def on_log(self, line):
        self.lines.append(line)

    def on_evaluate(self, step, metrics):
        self.evaluations.append((step, metrics))

    def on_step_end(self, step):
        self.steps.append(step)


class StopAt(Callback):
    """Asks to stop after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, step):
        return step == self.step


class StopOnceGood(Callback):
    """Asks to stop at the first evaluation."""

    def on_evaluate(self, step, metrics):
        return metrics["accuracy"] >= 0


class StopOnceLogged(Callback):
    """Asks to stop at the first line."""

    def on_log(self, line):
        return True


class Broken(Callback):
    """Has a bug."""

    def on_step_end(self, step):
        return 1 / (step - 2)


def test_what_callbacks_are_told(make_recipe):
    notes = Notes()
    result = finetune(make_recipe(train__logging_steps=2), callbacks=[notes])
    folder = RunFolder(result.output_dir)
    assert notes.lines == folder.read_log()
    steps = result.metrics["train"]["num_steps"]
    assert notes.steps == list(range(1, steps + 1))
    assert [step for step, _ in notes.evaluations] == [steps // 2, steps]
    assert all(0 <= metrics["accuracy"] <= 1 and "loss" in metrics for _, metrics in notes.evaluations)
    assert result.metrics["train"]["stopped_by"] is None


@pytest.mark.parametrize(("callback", "steps"), [(StopAt(3), 3), (StopOnceGood(), 9), (StopOnceLogged(), 1)])
def test_a_callback_stops_the_run(make_recipe, callback, steps):
    notes = Notes()
    result = finetune(make_recipe(eval__eval_steps=9, train__num_train_epochs=3), callbacks=[notes, callback])
    assert result.metrics["train"]["num_steps"] == steps == notes.steps[-1]
    assert result.metrics["train"]["stopped_by"] == type(callback).__name__
    assert [step for step, _ in notes.evaluations][-1] == steps, "the last weights are evaluated"
    assert result.metrics["train"]["best_step"] == steps and "test" in result.metrics
    assert json.loads((result.output_dir / "metrics.json").read_text()) == result.metrics


def test_early_stopping_is_recorded_too(make_recipe):
    recipe = make_recipe(
        optim__learning_rate=1e-12, eval__early_stopping_patience=1, train__num_train_epochs=9, train__max_steps=90
    )
    stopped = finetune(recipe).metrics["train"]
    assert stopped["num_steps"] < 90 and stopped["stopped_by"] == "early_stopping_patience"


def test_a_stop_at_the_last_step_is_none(make_recipe):
    recipe = make_recipe(train__max_steps=2)
    assert finetune(recipe, callbacks=[StopAt(2)]).metrics["train"]["stopped_by"] is None


def test_an_exception_ends_the_run_and_gives_the_folder_back(make_recipe):
    recipe = make_recipe(checkpoint__save_steps=1)
    with pytest.raises(ZeroDivisionError) as error:
        finetune(recipe, callbacks=[Broken()])
    assert error.traceback[-1].name == "on_step_end"
    resumed = finetune(recipe, resume=True)  # refused where the folder were still locked
    assert "test" in resumed.metrics


def test_only_true_stops():
    class Odd(Callback):
        def on_step_end(self, step):
            return "no"

    accelerator = build_accelerator("no", 1)
    callbacks = Callbacks([Odd()])
    callbacks.step_ended(1)
    assert callbacks.agree(accelerator) is None


def test_requests_are_forgotten_once_agreed():
    callbacks = Callbacks([StopOnceLogged(), StopAt(1)])
    accelerator = build_accelerator("no", 1)
    callbacks.log({"step": 1})
    callbacks.step_ended(1)
    assert callbacks.agree(accelerator) == "StopOnceLogged"
    assert callbacks.agree(accelerator) is None


@pytest.mark.parametrize("callback", [StopOnceLogged, print, None])
def test_what_is_not_a_callback(callback, make_recipe):
    with pytest.raises(UserError, match="callbacks"):
        finetune(make_recipe(), callbacks=[callback])


def test_lines_cannot_be_changed():
    class Rude(Callback):
        def on_log(self, line):
            line.clear()

    notes = Notes()
    Callbacks([Rude(), notes]).log({"step": 1})
    assert notes.lines == [{"step": 1}]


def test_one_process_stops_and_fails_for_all(recipe_file, tmp_path):
    run_on_two_processes(distributed_callbacks.__file__, recipe_file, tmp_path / "runs")
    first, second = (json.loads((tmp_path / f"runs.rank{rank}").read_text()) for rank in (0, 1))
    assert first["steps"] == second["steps"] == 2
    assert (first["stopped_by"], second["stopped_by"]) == ("a callback of another process", "OnOneRank")
    assert (first["ended"], second["ended"]) == ("FailedElsewhere", "ZeroDivisionError")
