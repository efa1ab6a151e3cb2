"""What a command loads before it answers, and how: what is not needed yet costs seconds of everybody's waiting."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

from sft_hf.core.recipe.registry import importing
from sft_hf.engine import process
from sft_hf.jobs.finetune import finetune

HEAVY = ("datasets", "pandas", "evaluate", "sklearn", "scipy.stats")


def loaded(code: str, *arguments: str) -> list[set[str]]:
    """Which of HEAVY a process has loaded where `code` calls `report`, and after `code`."""
    program = (
        "import sys\n"
        "def report():\n"
        f"    print('loaded', *({set(HEAVY)!r} & set(sys.modules)), flush=True)\n"
        f"{code}\n"
        "report()"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert found, done.stderr
    return [set(line.split()[1:]) for line in found]


@pytest.mark.long
def test_predictions_load_neither_data_sets_nor_metrics_and_the_first_step_no_metrics(make_recipe, tmp_path):
    """Of `--help` and of reading data, test_architecture.py and test_loading.py look in the quick tier."""

    run = finetune(make_recipe(train__max_steps=1)).output_dir
    file = tmp_path / "new.csv"
    file.write_text("text\ngoal match\nbank rate\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe().to_yaml())
    code = (
        "from sft_hf.cli import run\n"
        "assert run(['predict', *sys.argv[1:4]]) == 0\n"
        "report()\n"
        "import sft_hf.engine.loop\n"
        "def first_step(*_):\n"
        "    report()\n"
        "    raise SystemExit\n"
        "sft_hf.engine.loop.train_step = first_step\n"
        "run(['finetune', *sys.argv[4:]])"
    )
    predicting = (str(run), "goal match team", str(file))
    training = (str(recipe), "--output-dir", str(tmp_path / "first"))
    assert loaded(code, *predicting, *training) == [set(), {"datasets", "pandas"}]


def test_no_garbage_is_looked_for_while_importing():
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
        with importing():
            pass
        assert not gc.isenabled()  # the outer one goes on
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_sums_are_in_one_order():
    before = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("default")
        process.make_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode(before)


@pytest.mark.long
def test_sums_are_in_one_order_without_the_compiler_being_loaded():
    code = (
        "from sft_hf.engine import process\nprocess.make_deterministic()\nassert 'torch._inductor' not in sys.modules"
    )
    loaded(code)


def test_a_compiler_that_is_used_knows_of_it(monkeypatch):
    import torch._inductor.config as compiler

    from sft_hf.core.recipe.sections import TrainSection
    from sft_hf.models.speed import speed_up

    monkeypatch.setattr(compiler, "deterministic", False)
    # Compiled at its first forward pass, not here.
    speed_up(torch.nn.Linear(2, 2), TrainSection(torch_compile="on"), torch.device("cpu"))
    assert compiler.deterministic
