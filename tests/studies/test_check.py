"""`sft-hf check` finds before training what would spoil it, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil

import hub_server
import pytest


def check(commands, recipe_file, folder, *more):
    return commands.run("check", str(recipe_file), "--output-dir", str(folder / "runs" / "run"), *more)


def test_a_good_recipe_passes_and_nothing_is_left(commands, recipe_file, tmp_path):
    done = check(commands, recipe_file, tmp_path, "--strict")
    assert done.wait() == 0, done.said()
    said = done.said()
    for words in (
        "ok       recipe, model and data: every row can be used",
        "ok       train: 81 rows; length: median ",
        "ok       test: always answering 'sport', the most frequent label of train, would have accuracy 0.3333",
        "ok       one update on the 8 longest rows: ",
        "peak memory ",
        "ok       a checkpoint: 2",  # 225.9 kB
        "free for ",
    ):
        assert words in said, said
    assert list(tmp_path.iterdir()) == []


def with_train(data_folder, folder, change):
    shutil.copytree(data_folder, folder / "data")
    lines = (folder / "data" / "train.csv").read_text().splitlines()
    change(lines, (folder / "data" / "test.csv").read_text().splitlines())
    (folder / "data" / "train.csv").write_text("\n".join(lines) + "\n")
    return f"data.name={folder / 'data'}"


def test_leaks_and_rare_labels_are_warnings_and_strict_fails_on_them(commands, recipe_file, data_folder, tmp_path):
    def change(train, test):
        train.extend(
            [test[4].upper().replace(",SPORT", ",sport").replace(",MONEY", ",money").replace(",FOOD", ",food")]
        )
        train.extend(f"a text of its own number {number},rare" for number in range(3))

    data = with_train(data_folder, tmp_path, change)
    done = check(commands, recipe_file, tmp_path, data)
    assert done.wait() == 0, done.said()
    assert "warning  1 of 30 test rows (3.3%) are in train too: rows 3 (is train row 90)" in done.said()
    assert "warning  train has fewer than 10 rows of rare (" in done.said()
    assert "test has no rows labeled rare" in done.said()
    strict = check(commands, recipe_file, tmp_path, data, "--strict")
    assert strict.wait() == 2
    assert "error: 2 warnings, and --strict: 1 of 30 test rows" in strict.said()


def test_skipped_rows_are_a_warning(make_recipe, data_folder, tmp_path):
    from sft_hf.studies.check import check as run_check

    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    with (folder / "test.csv").open("a", encoding="utf-8") as file:
        file.write('"",sport\n')
    report = run_check(make_recipe(data__name=str(folder), data__on_bad_row="skip"))
    assert any("1 of 31 rows skipped" in line for line in report.warnings), report
    assert not any("skipped (" in line or "every row" in line for line in report.passed), report


def test_frozen_parts_are_measured_as_they_will_run(make_recipe, monkeypatch):
    from sft_hf.studies import check as checking

    step, modes = checking.train_step, {}

    def watched(training, *others):
        model = training.model
        modes.update(frozen=[part.training for part in model.bert.modules()], head=model.classifier.training)
        return step(training, *others)

    monkeypatch.setattr(checking, "train_step", watched)
    checking.check(make_recipe(train__freeze=["backbone"]))
    assert modes["head"] and not any(modes["frozen"])


def test_a_run_warns_of_them_too(commands, recipe_file, data_folder, tmp_path):
    data = with_train(data_folder, tmp_path, lambda train, test: train.append(test[4]))
    done = commands.run("finetune", str(recipe_file), data, "train.max_steps=1", "--output-dir", str(tmp_path / "run"))
    assert done.wait() == 0
    assert "1 of 30 test rows (3.3%) are in train too: rows 3 (is train row 90)" in done.said()


def test_bad_data_are_an_error(commands, recipe_file, data_folder, tmp_path):
    data = with_train(data_folder, tmp_path, lambda train, test: train.append(",sport"))
    done = check(commands, recipe_file, tmp_path, data)
    assert done.wait() == 2
    assert "row 90: column 'text' is empty" in done.said().splitlines()[-1]


def test_a_taken_folder_is_a_warning(commands, recipe_file, tmp_path):
    folder = tmp_path / "runs" / "run"
    commands.run("finetune", str(recipe_file), "train.max_steps=1", "--output-dir", str(folder))
    done = check(commands, recipe_file, tmp_path)
    assert done.wait() == 0
    assert "warning  " in done.said() and "already holds a run" in done.said()


@pytest.fixture
def hub(tmp_path):
    """A Hub with a repository that one user may write to."""
    server = hub_server.HubServer(tmp_path / "hub")
    server.users = {
        "hf_may": hub_server.User("ann", organizations=("lab",)),
        "hf_may_not": hub_server.User("bob"),
        "hf_reads": hub_server.User("ann", role="read"),
    }
    server.tokens |= set(server.users)
    server.create("ann/model", writers=("hf_may",))
    with server:
        yield server


def test_write_access_to_the_hub(commands, hub, tmp_path):
    cases = [
        ("hf_may", "ann/model", "Hub: ann/model can be written to"),
        ("hf_may", "lab/new", "Hub: lab/new does not exist yet and can be created"),
        ("hf_may", "new", "Hub: ann/new does not exist yet and can be created"),
        ("hf_may", "other/new", "other/new: does not exist, and you may not create it under 'other'"),
        ("hf_may_not", "ann/model", "ann/model: you or your token have no write access (403: "),
        ("hf_reads", "ann/model", "ann/model: your token has only read access"),
        ("hf_unknown", "ann/model", "ann/model: the Hub does not accept your token"),
        ("", "ann/model", "ann/model: no token for the Hub"),
    ]
    code = (  # in a process to which another address is the Hub
        "import json, os, sys\n"
        "from huggingface_hub import constants\n"
        "constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_TOKEN_PATH = sys.argv[2], False, sys.argv[3]\n"
        "for name in [name for name in os.environ if 'proxy' in name.lower()]: del os.environ[name]\n"
        "from sft_hf.core.errors import UserError\n"
        "from sft_hf.studies.check import _hub_access\n"
        "for token, repository, _ in json.loads(sys.argv[1]):\n"
        "    os.environ['HF_TOKEN'] = token\n"
        "    try: print(_hub_access(repository)[0])\n"
        "    except UserError as error: print(error)\n"
    )
    done = commands.python("-c", code, json.dumps(cases), hub.url, tmp_path / "no-token")
    assert done.returncode == 0, done.stderr
    for (_, _, words), said in zip(cases, done.stdout.splitlines(), strict=True):
        assert words in said
