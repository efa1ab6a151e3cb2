"""What the README shows works: its commands, its recipe, its Python."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sft_hf.cli import run
from sft_hf.recipe import load_recipe
from sft_hf.run import finetune

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    joined = "".join(blocks("sh")).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines()]


@pytest.fixture
def workspace(make_recipe, data_folder, tmp_path, monkeypatch):
    """A folder as the README assumes it: a finished run in runs/text, and a user's files."""
    texts = [line.split(",")[0] for line in (data_folder / "train.csv").read_text().splitlines()[1:]]
    (tmp_path / "reviews.csv").write_text(
        "review,stars\n" + "".join(f"{t},{i % 3}\n" for i, t in enumerate(texts[:60]))
    )
    (tmp_path / "new.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts[:5]))
    finetune(make_recipe(train__max_steps=2, output_dir=str(tmp_path / "runs" / "text")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_first_commands_are_those_of_the_contract():
    first, second = shell_commands()[:2]
    assert first[:4] == ["pip", "install", "-e", ".[all]"]
    assert first[4:] == ["&&", "accelerate", "launch", "scripts/finetune.py", "--recipe", "text"]
    assert second == ["pip", "install", "-e", ".[all,test]", "&&", "scripts/check"]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_sft_hf_command_runs(workspace, checkpoint, capsys):
    commands = [command[1:] for command in shell_commands() if command[0] == "sft-hf"]
    assert {command[0] for command in commands} >= {"finetune", "predict"}
    for command in commands:
        if command[0] == "finetune":  # on the tiny model; the rest is as it stands
            tiny = [f"model={{name: {checkpoint}}}", "train.max_steps=2", "train.num_threads=1", "task.max_length=32"]
            command += tiny
        assert run(command) == 0, (command, capsys.readouterr().err)
    assert len((workspace / "predictions.jsonl").read_text().splitlines()) == 5
    assert json.loads((workspace / "runs" / "reviews" / "metrics.json").read_text())["test"]["num_examples"] == 6


def test_the_python_runs(workspace, capsys):
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert "label" in capsys.readouterr().out


def test_the_recipe_is_valid(workspace):
    for text in blocks("yaml"):
        (workspace / "mine.yaml").write_text(text)
        assert load_recipe("mine.yaml").data.name.endswith("reviews.csv")


def test_every_command_of_the_table_exists():
    from sft_hf.cli import cli

    named = set(re.findall(r"^\| `sft-hf (\w+)", README, flags=re.MULTILINE))
    assert named == set(cli.commands)
