"""What the README shows works: its commands, its recipe, its Python."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sft_hf.cli import run
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.jobs.finetune import finetune

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    joined = "".join(blocks("sh")).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines()]


def tiny(command: list[str], checkpoints: dict[str, Path]) -> list[str]:
    """What makes a recipe of the README small: its scenario's tiny model, two steps."""
    name = command[1]
    model = checkpoints["vectors" if name == "text_word_embeddings" else name]
    settings = [f"model={{name: {model}}}", "train.max_steps=2", "train.num_threads=1", "train.mixed_precision=no"]
    if name == "image":
        settings.append("task.crop_pct=null")  # a ViT's processor has none
    return [*settings, "task.max_length=32"] if name.startswith("text") else settings


@pytest.fixture
def checkpoints(checkpoint, image_checkpoint, whisper_checkpoint, tmp_path) -> dict[str, Path]:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(
        "".join(f"{word} {index}.5 1.0 -1.0\n" for index, word in enumerate("goal bank bread the".split()))
    )
    return {"text": checkpoint, "image": image_checkpoint, "speech": whisper_checkpoint, "vectors": vectors}


@pytest.fixture
def workspace(data_folder, image_folder, speech_folder, make_image, tmp_path, monkeypatch):
    """A folder as the README assumes it, with a user's files; what the recipes would fetch is small and here."""
    texts = [line.split(",")[0] for line in (data_folder / "train.csv").read_text().splitlines()[1:]]
    (tmp_path / "reviews.csv").write_text(
        "review,stars\n" + "".join(f"{t},{i % 3}\n" for i, t in enumerate(texts[:60]))
    )
    (tmp_path / "new.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts[:5]))
    (tmp_path / "new_reviews.csv").write_text("review\n" + "".join(f"{text}\n" for text in texts[:5]))
    make_image("red", 1).save(tmp_path / "textile_0014.jpg")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "pictures").symlink_to(image_folder / "test" / "blue")
    (tmp_path / "animals").symlink_to(image_folder)
    (tmp_path / "talks").symlink_to(speech_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_first_commands_are_those_of_the_contract():
    first, second = shell_commands()[:2]
    assert first[:4] == ["pip", "install", "-e", ".[all]"]
    assert first[4:] == ["&&", "accelerate", "launch", "scripts/finetune.py", "--recipe", "text"]
    assert second == ["pip", "install", "-e", ".[all,test]", "&&", "scripts/check"]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_sft_hf_command_runs(workspace, checkpoints, data_folder, image_folder, speech_folder, capsys):
    """In order, on tiny models; a recipe's own data are replaced, a user's are not."""
    data = {"text": data_folder, "text_word_embeddings": data_folder, "image": image_folder, "speech": speech_folder}
    commands = [command[1:] for command in shell_commands() if command[0] == "sft-hf"]
    assert {tuple(command[:2]) for command in commands} >= {("finetune", name) for name in data}
    for command in commands:
        if command[0] == "finetune":
            command += tiny(command, checkpoints)
            if not any(argument.startswith("data=") for argument in command):
                command.append(f"data={{name: {data[command[1]]}}}")
        assert run(command) == 0, (command, capsys.readouterr().err)
    assert len((workspace / "predictions.jsonl").read_text().splitlines()) == 5
    labels = (workspace / "labels.csv").read_text().splitlines()
    assert len(labels) == 1 + 4 and "probability_blue" in labels[0]
    assert (workspace / "dictation.srt").is_file()
    for name, rows in {"reviews": 6, "animals": 12, "talks": 8}.items():
        metrics = json.loads((workspace / "runs" / name / "metrics.json").read_text())
        assert metrics["test"]["num_examples"] == rows


def test_the_python_runs(workspace, make_recipe, capsys):
    finetune(make_recipe(train__max_steps=2, output_dir="runs/text"))
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert "label" in capsys.readouterr().out


def test_the_python_of_the_first_hour_runs(workspace, checkpoint):
    """The page's own code, with a DataFrame of the user and a tiny model."""
    page = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    settings = tiny(["finetune", "text"], {"text": checkpoint})
    code = code.replace('"output_dir=runs/reviews"', f'"output_dir=runs/reviews", *{settings!r}')
    names: dict[str, Any] = {"frame": pd.read_csv("reviews.csv")}
    exec(compile(code, "first_hour.md", "exec"), names)
    assert len(names["answers"]) == 60 and set(names["answers"][0]["probabilities"]) == {"0", "1", "2"}
    assert names["metrics"]["num_examples"] == 6


def test_the_recipe_is_valid(workspace):
    for text in blocks("yaml"):
        (workspace / "mine.yaml").write_text(text)
        assert load_recipe("mine.yaml").data.name.endswith("reviews.csv")


def test_every_command_of_the_table_exists():
    from sft_hf.cli import cli

    named = set(re.findall(r"^\| `sft-hf ([\w-]+)", README, flags=re.MULTILINE))
    assert named == set(cli.commands)


def test_the_technique_shown_is_the_one_in_the_package():
    """Whole, but for its docstrings; that of the class, which users see, is shown too."""
    (shown,) = (ast.parse(block) for block in blocks("py"))
    folder = ROOT / "sft_hf" / "techniques" / "regularization"
    real = [
        node
        for name in ("settings", "label_smoothing")
        for node in ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and (name == "label_smoothing" or node.name == "LabelSmoothingSettings")
    ]
    for node in (inner for outer in real for inner in ast.walk(outer)):
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and node.name != "LabelSmoothing"
            and ast.get_docstring(node)
        ):
            node.body = node.body[1:]
    assert [ast.dump(node) for node in shown.body] == [ast.dump(node) for node in real]
