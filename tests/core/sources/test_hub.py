"""Checkpoints and data sets of the Hub, told by a small Hub on 127.0.0.1 (see hub_server.py).

huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so everything here runs in a process of its
own: all in one, since importing torch costs more than such a run.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from hub_contents import WritesAFile, checkpoint_files, data_files, pickled, tensors_of

RECIPE = "text_distilbert_sst2"
MODEL, DATA = "distilbert/distilbert-base-uncased", "stanfordnlp/sst2"
TOKEN, STRANGER = "hf_testtoken0123456789abcdef", "hf_strangertoken0123456789ab"
SMALL = ["train.num_threads=1", "train.per_device_train_batch_size=4", "train.max_steps=2", "data.max_train_samples=16"]
EMBEDDINGS = "distilbert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Every repository that a test below names, served as long as this module runs."""
    folder = tmp_path_factory.mktemp("hub")
    hub = hub_server.HubServer(folder / "repositories")
    old, new = checkpoint_files(seed=1), checkpoint_files(seed=2)
    repository = hub.create(MODEL)
    repository.tags["v1"] = repository.commit(old)
    repository.commit(new)
    repository = hub.create(DATA, "datasets")
    repository.tags["v1"] = repository.commit(data_files(30, 6))
    repository.commit(data_files(60, 10))

    for kind, files in (("models", new), ("datasets", data_files(60, 10))):
        hub.create(f"org/gated-{kind}", kind, gated=True).commit(files)
        hub.create(f"org/private-{kind}", kind, private=True, readers=(TOKEN,)).commit(files)
        hub.create(f"org/ill-{kind}", kind).commit(files)
        hub.create(f"org/public-{kind}", kind).commit(files)
    hub.tokens.add(STRANGER)
    hub.fail("/org/ill-")

    rest = {name: content for name, content in new.items() if name != "model.safetensors"}
    tensors = tensors_of(new["model.safetensors"])
    hub.create("org/pickled-weights").commit({**rest, "pytorch_model.bin": pickled(tensors)})
    evil = {"a": WritesAFile(folder / "ran-pickle")}
    hub.create("org/malicious").commit({**rest, "pytorch_model.bin": pickled(evil)})
    hub.create("org/half").commit({**rest, "model.safetensors": new["model.safetensors"][:2000]})
    hub.create("org/without-weights").commit(rest)
    code = f"""open({str(folder / "ran-module")!r}, "w").close()
from transformers import PreTrainedConfig

class OwnConfig(PreTrainedConfig):
    model_type = "own"
"""
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    hub.create("org/own-code").commit({**rest, "config.json": json.dumps(own), "own.py": code})
    with hub:
        yield hub


# --- the processes that use it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def metrics(self) -> dict[str, Any]:
        assert self.code == 0, self.stderr
        return json.loads((self.folder / "metrics.json").read_text())

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        assert self.code == 2, (self.code, self.stderr)
        assert "Traceback" not in self.stderr, self.stderr
        assert not self.folder.exists()
        lines = self.stderr.splitlines()
        assert [line for line in lines if line.startswith("error:")] == lines[-1:], self.stderr
        return lines[-1]

    def tensor(self, name: str) -> torch.Tensor:
        assert self.code == 0, self.stderr
        return tensors_of((self.folder / "model" / "model.safetensors").read_bytes())[name]


DRIVER = """
import io, json, os, sys, time
from pathlib import Path
import huggingface_hub.utils._http as http
from sft_hf.cli import run

class NoSleep:
    sleep = staticmethod(lambda seconds: None)
    def __getattr__(self, name):
        return getattr(time, name)

http.time = NoSleep()  # five tries with pauses of up to 8 seconds, for each of several files

for step in json.loads(Path(sys.argv[1]).read_text()):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(step["env"])
    sys.stdin = io.StringIO("y\\n" * 9)  # whoever asks whether to run code hears yes
    saved = os.dup(1), os.dup(2)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(step[name], os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    started = time.perf_counter()
    code = run(step["args"])
    sys.stdout.flush(), sys.stderr.flush()
    for number, file in zip((1, 2), saved):
        os.dup2(file, number)
        os.close(file)
    print(json.dumps({"name": step["name"], "code": code, "seconds": time.perf_counter() - started}), flush=True)
"""


def run_all(
    steps: dict[str, tuple[list[str], dict[str, str]]], endpoint: str, folder: Path, home: Path
) -> dict[str, Ran]:
    """Run `sft-hf finetune RECIPE` once per step, with its overrides and variables, in one process."""
    described = []
    for name, (overrides, variables) in steps.items():
        described.append(
            {
                "name": name,
                "args": ["finetune", RECIPE, *SMALL, *overrides, "--output-dir", str(folder / name)],
                "env": variables,
                "stdout": str(folder / f"{name}.out"),
                "stderr": str(folder / f"{name}.err"),
            }
        )
    (folder / "steps.json").write_text(json.dumps(described))
    done = hub_server.run_client(endpoint, home, DRIVER, str(folder / "steps.json"))
    codes = {line["name"]: line["code"] for line in map(json.loads, done.stdout.splitlines())}
    return {
        name: Ran(code, (folder / f"{name}.out").read_text(), (folder / f"{name}.err").read_text(), folder / name)
        for name, code in codes.items()
    }


LOGIN = {"HF_TOKEN": TOKEN}
OTHER_LOGIN = {"HF_TOKEN": STRANGER}
BAD_LOGIN = {"HF_TOKEN": "hf_revoked"}
LOCAL = "data.name={local}"
STREAM = ["data.streaming=true", "data.max_train_samples=null", "data.validation_fraction=0", "train.max_steps=5"]
# What goes wrong: the overrides that bring it about, the environment, and what the error line says.
FAILURES: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "missing_model": (["model.name=org/nothing"], {}, ["org/nothing", "check model.name", "hf auth login"]),
    "missing_data": (["data.name=org/nothing"], {}, ["org/nothing", "data.name", "hf auth login"]),
    "missing_model_for_a_user": (["model.name=org/nothing"], OTHER_LOGIN, ["org/nothing", "check model.name"]),
    "missing_data_for_a_user": (["data.name=org/nothing"], OTHER_LOGIN, ["org/nothing", "data.name"]),
    "missing_model_revision": (["model.revision=v9"], {}, [MODEL, "model.revision", "v9"]),
    "missing_data_revision": (["data.revision=v9"], {}, [DATA, "data.revision", "v9"]),
    "gated_model": (["model.name=org/gated-models"], {}, ["org/gated-models", "gated", "hf auth login"]),
    "gated_data": (["data.name=org/gated-datasets"], {}, ["org/gated-datasets", "gated", "hf auth login"]),
    "gated_model_for_a_user": (["model.name=org/gated-models"], OTHER_LOGIN, ["org/gated-models", "gated", "accept"]),
    "gated_data_for_a_user": (["data.name=org/gated-datasets"], OTHER_LOGIN, ["org/gated-datasets", "gated", "accept"]),
    "private_model": (["model.name=org/private-models"], {}, ["org/private-models", "private", "hf auth login"]),
    "private_data": (["data.name=org/private-datasets"], {}, ["org/private-datasets", "private", "hf auth login"]),
    "private_data_for_a_stranger": (
        ["data.name=org/private-datasets"],
        OTHER_LOGIN,
        ["org/private-datasets", "private"],
    ),
    "gated_data_streamed": ([*STREAM, "data.name=org/gated-datasets"], OTHER_LOGIN, ["org/gated-datasets", "gated"]),
    "missing_data_streamed": ([*STREAM, "data.name=org/nothing"], {}, ["org/nothing", "data.name"]),
    "missing_data_revision_streamed": ([*STREAM, "data.revision=v9"], {}, [DATA, "data.revision", "v9"]),
    "missing_data_configuration": (["data.config_name=nothing"], {}, [DATA, "data.config_name", "default"]),
    "private_model_for_a_stranger": (["model.name=org/private-models"], OTHER_LOGIN, ["org/private-models", "private"]),
    "bad_token_for_model": (["model.name=org/public-models", LOCAL], BAD_LOGIN, ["org/public-models", "token"]),
    "bad_token_for_data": (["data.name=org/public-datasets"], BAD_LOGIN, ["org/public-datasets", "token"]),
    "ill_model": (["model.name=org/ill-models"], {}, ["org/ill-models", "cannot be reached"]),
    "ill_data": (["data.name=org/ill-datasets"], {}, ["org/ill-datasets", "cannot be reached"]),
    "own_code": (["model.name=org/own-code"], {}, ["org/own-code", "custom code"]),
    "malicious_pickle": (["model.name=org/malicious"], {}, ["org/malicious", "weights"]),
    "half_a_file": (["model.name=org/half"], {}, ["org/half", "weights"]),
    "without_weights": (["model.name=org/without-weights"], {}, ["org/without-weights", "weights"]),
}
STAND_STILL = "optim.learning_rate=1e-9"
SUCCESSES: dict[str, tuple[list[str], dict[str, str]]] = {
    "shipped": ([], {}),
    "old": (["model.revision=v1", "data.revision=v1", "data.max_train_samples=null", STAND_STILL], {}),
    "new": (["data.max_train_samples=null", STAND_STILL], {}),
    "private": (["model.name=org/private-models", "data.name=org/private-datasets"], LOGIN),
    "pickled": (["model.name=org/pickled-weights", STAND_STILL], {}),
    "stream": ([*STREAM, "data.stream_buffer_size=8"], {}),
}


@pytest.fixture(scope="module")
def ran(hub, tmp_path_factory) -> dict[str, Ran]:
    """Everything above, done once: first what goes wrong, so that nothing is in the cache yet but MODEL and DATA."""
    folder = tmp_path_factory.mktemp("ran")
    local = folder / "local"
    local.mkdir()
    for name, content in data_files(16, 6).items():
        if isinstance(content, bytes):
            (local / Path(name).name).write_bytes(content)
    failing = {
        name: ([override.format(local=local) for override in overrides], variables)
        for name, (overrides, variables, _) in FAILURES.items()
    }
    return run_all(failing | SUCCESSES, hub.url, folder, folder / "home")


@pytest.fixture(scope="module")
def ran_alone(ran, tmp_path_factory) -> dict[str, Ran]:
    """The same once more, with what `ran` left in the cache, when no server listens any more."""
    folder = tmp_path_factory.mktemp("alone")
    before = ran["new"].folder.parent
    steps = {
        "data": (["data.name=org/ill-datasets"], {}),
        "model": (["model.name=org/ill-models", f"data.name={before / 'local'}"], {}),
        "cached": ([], {}),
        "cached_old": (["model.revision=v1", "data.revision=v1"], {}),
    }
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens
        return run_all(steps, f"http://127.0.0.1:{taken.getsockname()[1]}", folder, before / "home")


# --- the tests ---------------------------------------------------------------------------------------------------


def test_the_shipped_recipe_runs_on_repositories_like_its_own(ran):
    run = ran["shipped"]
    metrics = run.metrics
    assert metrics["test"]["num_examples"] == 10  # the set's validation split; its test split hides the labels
    assert metrics["train"]["num_steps"] == 2
    assert metrics["model"]["name"] == MODEL
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in rows] == ["negative", "positive"] * 5
    # The head for masked words is left out, the one for labels is new, and nothing else is.
    (new,) = [line for line in run.stderr.splitlines() if line.startswith("randomly initialized weights")]
    names = {"classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight"}
    assert set(new.partition(": ")[2].split(", ")) == names
    assert "validation: " in run.stderr and "not used: split test" in run.stderr


def test_revisions_choose_older_commits(hub, ran):
    model, data = hub.repositories["models", MODEL], hub.repositories["datasets", DATA]
    sizes = {"old": (29, 6), "new": (59, 10)}  # of 30 and 60 rows 2 % are held out: one row
    for name, commit in (("old", model.tags["v1"]), ("new", model.branches["main"])):
        metrics = ran[name].metrics
        assert (metrics["train"]["num_examples"], metrics["test"]["num_examples"]) == sizes[name]
        served = tensors_of((model.folder / commit / "model.safetensors").read_bytes())[EMBEDDINGS]
        torch.testing.assert_close(ran[name].tensor(EMBEDDINGS), served, atol=1e-6, rtol=0)
    assert (ran["old"].tensor(EMBEDDINGS) - ran["new"].tensor(EMBEDDINGS)).abs().max() > 1e-3
    assert len(set(data.commits)) == 2


@pytest.mark.parametrize("name", ["old", "new", "private"])
def test_metrics_tell_the_commits_of_checkpoint_and_data(hub, ran, name):
    model = hub.repositories["models", "org/private-models" if name == "private" else MODEL]
    commit = model.tags["v1"] if name == "old" else model.branches["main"]
    assert ran[name].metrics["model"]["revision"] == commit
    data = hub.repositories["datasets", "org/private-datasets" if name == "private" else DATA]
    commit = data.tags["v1"] if name == "old" else data.branches["main"]
    assert ran[name].metrics["data"]["revision"] == commit


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_wrong_is_said_in_one_line(ran, name):
    for part in FAILURES[name][2]:
        assert part in ran[name].error


def test_a_token_opens_private_repositories_and_is_written_nowhere(ran):
    run = ran["private"]
    assert run.code == 0
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in run.stdout + run.stderr


def test_weights_in_pytorchs_own_format_load(hub, ran):
    repository = hub.repositories["models", "org/pickled-weights"]
    served = torch.load(
        repository.folder / repository.branches["main"] / "pytorch_model.bin", weights_only=True, map_location="cpu"
    )
    torch.testing.assert_close(ran["pickled"].tensor(EMBEDDINGS), served[EMBEDDINGS], atol=1e-6, rtol=0)


def test_nobody_is_asked_to_convert_a_checkpoint(hub, ran):
    assert ran["pickled"].code == 0
    assert not hub.paths("org/pickled-weights/(commits|discussions)")


def test_code_from_the_hub_is_never_run(hub, ran):
    assert ran["own_code"].code != 0 and ran["malicious_pickle"].code != 0
    assert not list(hub.folder.parent.glob("ran-*"))
    assert "[y/N]" not in ran["own_code"].stdout + ran["own_code"].stderr


@pytest.mark.parametrize("name", ["old", "private"])  # the first to read their data set
def test_bars_are_for_terminals(ran, name):
    assert "\r" not in ran[name].stderr and "examples/s]" not in ran[name].stderr


def test_a_data_set_is_streamed(ran):
    metrics = ran["stream"].metrics
    assert metrics["train"]["num_steps"] == 5 and metrics["train"]["num_examples"] is None
    assert metrics["test"]["num_examples"] == 10
    config = json.loads((ran["stream"].folder / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}


@pytest.mark.long
@pytest.mark.parametrize(("name", "repository"), [("data", "org/ill-datasets"), ("model", "org/ill-models")])
def test_a_hub_that_cannot_be_reached_is_said_in_one_line(ran_alone, name, repository):
    """Of a Hub that answers with errors the quick tier has `ill_model` and `ill_data`."""

    assert repository in ran_alone[name].error and "cannot be reached" in ran_alone[name].error


@pytest.mark.long
def test_without_the_hub_the_cache_serves_the_revision_asked_for_or_none(ran_alone):
    """Of models and mirrors: test_mirrors.py."""

    trained = []
    for name, rows in (("cached", 10), ("cached_old", 6)):
        run = ran_alone[name]
        if run.code == 0:
            trained.append(name)
            assert run.metrics["test"]["num_examples"] == rows
        else:
            assert DATA in run.error and "cannot be reached" in run.error
    assert trained
