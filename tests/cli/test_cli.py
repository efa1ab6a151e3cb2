"""The command line: what a user types, what a user sees, and the exit code."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sft_hf.cli import run
from sft_hf.core.errors import StorageError
from sft_hf.core.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "finetune.py"


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(make_recipe(train__max_steps=2).to_yaml())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_finetune_evaluate_predict_from_the_shell(recipe_file, tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(["finetune", str(recipe_file), "train.max_steps=3", "--output-dir", str(folder), "seed=7"]) == 0
    out, err = capsys.readouterr()
    assert "test accuracy" in out and "95 % interval" in out and "compared with" in out
    assert err.splitlines()[-1].startswith("next:  sft-hf predict ")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["train"]["num_steps"], metrics["seed"]) == (3, 7)

    assert run(["evaluate", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == metrics["test"]["accuracy"]

    assert run(["predict", str(folder), "goal match team", "bank"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["goal match team", "bank"]
    assert all({"id", "prediction", "confidence"} <= line.keys() for line in lines)

    assert run(["predict", str(folder), "goal", "--output", str(tmp_path / "p.jsonl")]) == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 1
    for name in ("p.json", "p.txt"):
        assert run(["predict", str(folder), "goal match team", "bank", "--output", str(tmp_path / name)]) == 0
    assert json.loads((tmp_path / "p.json").read_text()) == lines
    assert (tmp_path / "p.txt").read_text().splitlines() == [line["prediction"] for line in lines]
    (tmp_path / "new.csv").write_text("text\ngoal\n")
    for name, words in (("p.tsv", "format .tsv"), ("new.csv", "is the input itself")):
        kind = ["--format", "jsonl"] if name == "new.csv" else []
        assert run(["predict", str(folder), str(tmp_path / "new.csv"), "--output", str(tmp_path / name), *kind]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "new.csv").read_text() == "text\ngoal\n" and not (tmp_path / "p.tsv").exists()
    assert run(["predict", str(folder), "goal", "--output", str(tmp_path / "p.srt")]) == 2
    assert "text_classification has no option 'timestamps'" in capsys.readouterr().err


def test_a_prediction_that_fails_half_way_leaves_no_file(recipe_file, tmp_path, monkeypatch, capsys):
    from sft_hf.data.new_inputs import texts as text_inputs

    def failing(path, data, choose):
        yield 0, {"text": "goal"}, None, None
        raise StorageError(f"{path}: cannot be read")

    assert run(["finetune", str(recipe_file)]) == 0
    (tmp_path / "new.csv").write_text("text\ngoal\n")
    monkeypatch.setattr(text_inputs, "table_rows", failing)
    for name in ("p.jsonl", "p.csv"):
        arguments = ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--output", str(tmp_path / name)]
        assert run(arguments) == 74
    assert not list(tmp_path.glob("*p.*"))
    assert "new.csv: cannot be read" in capsys.readouterr().err


def test_the_script_takes_the_recipe_by_option(commands, recipe_file, tmp_path):
    done = commands.python(SCRIPT, "--recipe", recipe_file, f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.json").is_file()
    assert "1 process on cpu" in done.stderr


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_script_under_a_real_launcher(recipe_file, tmp_path, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, str(SCRIPT), "--recipe", str(recipe_file), f"output_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["environment"]["num_processes"] == processes


def test_show_prints_a_recipe_that_loads_back(recipe_file, capsys):
    import yaml

    assert run(["show", str(recipe_file), "optim.learning_rate=3e-5"]) == 0
    shown = Recipe.model_validate(yaml.safe_load(capsys.readouterr().out))
    assert shown.optim.learning_rate == 3e-5


def test_json_is_all_that_stands_on_standard_output(recipe_file, tmp_path, capsys):
    folder = str(tmp_path / "out")
    answers = {}
    for command in (
        ["recipes"],
        ["show", str(recipe_file)],
        ["schema"],
        ["check", str(recipe_file), "--output-dir", folder],
        ["finetune", str(recipe_file), "--output-dir", folder],
        ["evaluate", folder],
        ["predict", folder, "goal", "bank"],
        ["predict", folder, "goal", "--output", str(tmp_path / "p.jsonl")],
        ["report", folder],
        ["completion", "bash"],
    ):
        assert run([*command, "--json"]) == 0, command
        out, err = capsys.readouterr()
        answers[command[0]] = json.loads(out)
        assert "next:" not in err
    assert {"name", "title", "hub", "path"} == set(answers["recipes"][0])
    assert answers["show"]["train"]["max_steps"] == 2
    assert answers["check"]["passed"] and not answers["check"]["problems"]
    assert answers["finetune"]["test"]["accuracy"] == answers["evaluate"]["accuracy"]
    assert answers["finetune"]["output_dir"] == folder
    assert answers["predict"] == {"output": str(tmp_path / "p.jsonl"), "answered": 1, "failed": 0}
    assert Path(answers["report"]["output"]).is_file()


def test_an_error_in_json_is_an_object_with_its_exit_code(recipe_file, capsys):
    assert run(["show", str(recipe_file), "sed=1", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": err.removeprefix("error: ").strip(), "exit_code": 2}


def test_quiet_says_results_alone(recipe_file, tmp_path, capsys):
    for name, arguments in {"before": ["--quiet", "finetune"], "after": ["finetune", "--quiet"]}.items():
        no_warning = "eval.baseline=none"  # this model is worse than TF-IDF, and says so
        assert run([*arguments, str(recipe_file), no_warning, "--output-dir", str(tmp_path / name)]) == 0
        out, err = capsys.readouterr()
        assert "test accuracy" in out and err == ""


def test_colours_on_a_terminal_alone(recipe_file, tmp_path, capsys):
    assert run(["check", str(recipe_file), "--output-dir", str(tmp_path / "out")]) == 0
    assert run(["show", "nothing"]) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_heeded_on_a_terminal(no_color, coloured):
    """A real terminal: a pseudo one."""
    import pty

    code = (
        f"import os, sys; os.environ['NO_COLOR'] = {no_color!r}; from sft_hf.cli import run; run(['show', 'nothing'])"
    )
    pieces = []

    def keep(descriptor):
        pieces.append(os.read(descriptor, 4096))
        return b""

    pty.spawn([sys.executable, "-c", code], keep)
    assert b"no recipe is called 'nothing'" in b"".join(pieces)
    assert (b"\x1b[" in b"".join(pieces)) == coloured


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sft-hf fine", "finetune"),
        ("sft-hf finetune te", "text"),
        ("sft-hf finetune text optim.l", "optim.learning_rate="),
        ("sft-hf evaluate runs/", "runs/mine"),
    ],
)
def test_the_shell_completes(words, expected, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").touch()
    variables = {"_SFT_HF_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "sft_hf"],
        env={**os.environ, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"plain,{expected}" in done.stdout.splitlines(), done


def test_recipes_lists_each_with_a_line(capsys):
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("text ") and "MiniLM" in line for line in lines)


def test_the_help_of_finetune_teaches_every_key(capsys):
    assert run(["finetune", "--help"]) == 0
    out = capsys.readouterr().out
    for key in ("data.text_column", "optim.learning_rate", "train.mixed_precision", "seed", "--resume", "--overwrite"):
        assert key in out
    assert all(word in out for word in ("task.max_length", "task.language", "sft-hf show"))


TEXT = "text,label\n"
GOOD = "".join(f"{word} goal,{label}\n" for word in "abcdefghij" for label in ("x", "y"))


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({}, ["optim.learnign_rate=1"], ["optim.learnign_rate", "did you mean learning_rate"]),
        ({}, ["data.label_column=labl"], ["train.csv", "labl", "did you mean label"]),
        ({"test.csv": TEXT + "goal,z\n"}, [], ["test.csv row 0", "'z'", "never seen in train", "x, y"]),
        ({"train.csv": TEXT + GOOD + '"",x\n'}, [], ["train.csv row 20", "'text'", "empty"]),
        ({"train.csv": TEXT + GOOD + "one, two,x\n"}, [], ["train.csv", "22", "3", "2"]),
        ({}, ["data.name=nowhere/train.csv"], ["nowhere/train.csv", "not exist"]),
        ({}, ["model.name=./nowhere"], ["nowhere", "not exist"]),
        ({}, ["model.sha256=" + "0" * 64], ["model.sha256"]),
        ({}, ["train.per_device_train_batch_size=0"], ["per_device_train_batch_size", "greater than 0"]),
        (
            {"note.yaml": "a: !!python/object/apply:os.system [true]\n"},
            "note.yaml",
            ["note.yaml", "line 1", "plain data"],
        ),
        ({"broken.yaml": "a: [1\n"}, "broken.yaml", ["broken.yaml", "not valid YAML"]),
        ({}, "absent.yaml", ["absent.yaml", "no such recipe"]),
        ({"train.csv": TEXT + "goal,x\n" * 20}, [], ["train.csv", "only the label 'x'"]),
        ({"train.csv": ""}, [], ["train.csv", "empty"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(
    recipe_file, tmp_path, monkeypatch, capsys, files, arguments, words
):
    data = tmp_path / "data"
    data.mkdir()
    for name, content in {"train.csv": TEXT + GOOD, "test.csv": TEXT + GOOD, **files}.items():
        (data / name).write_text(content)
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "recipe.yaml").write_text("an earlier run\n")
    before = contents(earlier)
    monkeypatch.chdir(tmp_path)
    if isinstance(arguments, str):
        command = ["finetune", str(data / arguments)]
    else:
        command = ["finetune", str(recipe_file), f"data.name={data}", *arguments]
    assert run([*command, "--output-dir", str(earlier), "--overwrite"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert not any(line.startswith("Traceback") for line in lines)
    assert sum(line.startswith("error:") for line in lines) == 1
    assert all(word in lines[-1] for word in words), lines[-1]
    assert contents(earlier) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"model_type": "vit"}', ["vit", "cannot classify text", "AutoModelForSequenceClassification"]),
        ('{"model_type": "no-such-model"}', ["no-such-model"]),
        ("{", ["config.json"]),
        (None, ["no config.json"]),
    ],
)
def test_a_checkpoint_that_is_no_base_of_a_classifier(recipe_file, tmp_path, capsys, config, words):
    folder = tmp_path / "foreign"
    folder.mkdir()
    if config:
        (folder / "config.json").write_text(config)
    assert run(["finetune", str(recipe_file), f"model.name={folder}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "foreign" in error
    assert all(word in error for word in words), error


def test_weights_of_another_architecture_are_refused(recipe_file, tmp_path, checkpoint, capsys):
    import shutil

    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "mixed"
    shutil.copytree(checkpoint, folder)
    save_file({"something.else": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert run(["finetune", str(recipe_file), f"model.name={folder}"]) == 2
    assert "different architectures" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetun"], ["finetun"]),
        (["finetune"], ["name of a recipe"]),
        (["finetune", "txt"], ["did you mean text"]),
        (["finetune", "text", "--reusme"], ["--reusme"]),
        (["predict", "nowhere", "x"], ["nowhere", "no such run folder"]),
        (["evaluate", "."], ["no recipe.yaml"]),
        (["predict"], ["RUN"]),
        (["finetune", "text", "train.maxsteps=3"], ["command line: train.maxsteps", "did you mean max_steps"]),
        (["finetune", "text", "report_to=wandb"], ["command line: report_to", "[...]"]),
    ],
)
def test_a_slip_of_the_fingers_is_one_line_and_exit_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert all(word in error for word in words), error


def test_no_command_at_all_prints_the_help_as_it_is(capsys):
    assert run([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Usage: sft-hf") and any(line.lstrip().startswith("finetune ") for line in lines)


def test_a_reader_that_stops_reading_is_no_failure():
    command = [sys.executable, "-c", "from sft_hf.cli import main; main()", "schema"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


UNREAD = """
import os
from sft_hf.cli import main
reading, writing = os.pipe()
os.close(reading)
for standard in (1, 2):
    os.dup2(writing, standard)
main()
"""


def test_a_run_whose_log_nobody_reads_goes_on(commands, recipe_file, tmp_path):
    assert commands.python("-c", UNREAD, "finetune", recipe_file, "--output-dir", tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "metrics.json").exists()


def test_an_error_that_nobody_reads_has_its_exit_code(recipe_file, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is left in a buffer is written at the end
    command = [sys.executable, "-c", UNREAD, "finetune", str(recipe_file), "train.maxsteps=3"]
    assert subprocess.run(command, check=False).returncode == 2


def test_the_next_command_can_be_pasted_into_a_shell(recipe_file, tmp_path, capsys):
    folder = tmp_path / "a run & more"
    assert run(["finetune", str(recipe_file), "--output-dir", str(folder)]) == 0
    next_line = capsys.readouterr().err.splitlines()[-1]
    assert shlex.split(next_line)[1:5] == ["sft-hf", "predict", str(folder), "INPUT..."]


def test_an_unknown_optimizer_is_found_before_the_data_is_read(recipe_file, tmp_path, capsys):
    arguments = ["optim.name=adm", f"data.name={tmp_path / 'absent'}"]
    assert run(["finetune", str(recipe_file), *arguments]) == 2
    assert "did you mean adam" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_exits_1(recipe_file, monkeypatch, capsys):
    from sft_hf.jobs import build

    monkeypatch.setattr(build, "build_optimizer", lambda *a: 1 / 0)
    assert run(["finetune", str(recipe_file)]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "bug in sft-hf" in err
