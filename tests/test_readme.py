"""What README and the guides show works: their commands in order, and their Python, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pages import ROOT, blocks, commands

from sft_hf.cli import run
from sft_hf.jobs.finetune import finetune

RUN = ("README.md", "docs/text.md", "docs/images.md", "docs/speech.md", "docs/from_pytorch.md")
"""Pages whose `sft-hf` commands are run here, one after the other; those of other pages are parsed in test_docs.py."""


def tiny(command: list[str], checkpoints: dict[str, Path]) -> list[str]:
    """What makes a recipe of the pages small: its scenario's tiny model, two steps."""
    name = command[1]
    settings = ["train.max_steps=2", "train.num_threads=1", "train.mixed_precision=no"]
    if name not in (*checkpoints, "text_word_embeddings"):
        return settings
    model = checkpoints["vectors" if name == "text_word_embeddings" else name]
    settings.append(f"model={{name: {model}}}")
    if name == "image":
        settings.append("task.crop_pct=null")  # a ViT's processor has none
    if name == "speech":
        settings.append("task.language=english")  # the tiny model knows no other
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
    """A folder as the pages assume it, with a user's files; what the recipes would fetch is small and here."""
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


@pytest.fixture
def classic(workspace) -> None:
    """The recipe and the plain state dict of docs/from_pytorch.md."""
    import timm
    import torch

    torch.save(timm.create_model("resnet18").state_dict(), workspace / "pretrained_model.pth")
    (recipe,) = blocks("docs/from_pytorch.md", "yaml")
    (workspace / "classic.yaml").write_text(recipe)


def test_the_two_first_commands_are_those_of_the_contract():
    install, main, install_tests, check = commands("README.md")[:4]
    assert install == ["pip", "install", "-e", ".[all]"]
    assert main == ["accelerate", "launch", "scripts/finetune.py", "--recipe", "text"]
    assert (install_tests, check) == (["pip", "install", "-e", ".[all,test]"], ["scripts/check"])
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.long
def test_every_sft_hf_command_runs(workspace, classic, checkpoints, data_folder, image_folder, speech_folder, capsys):
    """In order, on tiny models; a recipe's own data are replaced, a user's are not."""
    data = {"text": data_folder, "text_word_embeddings": data_folder, "image": image_folder, "speech": speech_folder}
    shown = [tuple(command[1:]) for page in RUN for command in commands(page) if command[0] == "sft-hf"]
    finetunes = {command[1] for command in shown if command[0] == "finetune"}
    assert finetunes == {*data, "classic.yaml"}
    for command in dict.fromkeys(shown):
        arguments = list(command)
        if arguments[0] == "finetune":
            arguments += tiny(arguments, checkpoints)
            if arguments[1] in data and not any(argument.startswith("data=") for argument in command):
                arguments.append(f"data={{name: {data[arguments[1]]}}}")
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)
    assert len((workspace / "predictions.jsonl").read_text().splitlines()) == 5
    labels = (workspace / "labels.csv").read_text().splitlines()
    assert len(labels) == 1 + 4 and "probability_blue" in labels[0]
    assert (workspace / "dictation.srt").is_file()
    for name, rows in {"reviews": 6, "animals": 12, "talks": 8, "classic": 12}.items():
        metrics = json.loads((workspace / "runs" / name / "metrics.json").read_text())
        assert metrics["test"]["num_examples"] == rows


def run_python(code: str, names: dict[str, Any], checkpoint: Path) -> None:
    """Run a page's own code with a tiny model in place of the recipe's."""
    settings = f"model={str(checkpoint)!r}, max_steps=2, num_threads=1, mixed_precision='no', max_length=32"
    code = code.replace('label="stars"', f'label="stars", {settings}')
    exec(compile(code, "page", "exec"), names)


def test_the_python_of_the_readme_runs(workspace, checkpoint, capsys):
    names: dict[str, Any] = {}
    for code in blocks("README.md", "python"):
        run_python(code, names, checkpoint)
    assert len(names["answers"]) == 2


@pytest.mark.long
def test_the_python_of_the_first_hour_runs(workspace, checkpoint, make_recipe, capsys):
    """The page's own code, with a DataFrame of the user; its pipeline opens the model of a run."""
    train, pipeline = blocks("docs/first_hour.md", "python")
    names: dict[str, Any] = {"frame": pd.read_csv("reviews.csv")}
    run_python(train, names, checkpoint)
    assert len(names["answers"]) == 60 and set(names["answers"][0]["probabilities"]) == {"0", "1", "2"}
    assert names["metrics"]["num_examples"] == 6
    finetune(make_recipe(train__max_steps=2, output_dir="runs/text"))
    exec(compile(pipeline, "first_hour.md", "exec"), {})
    assert "label" in capsys.readouterr().out
