"""Pushing to a Hub that is ill, and pushes that are killed: these get SIGKILL while the Hub holds their request."""

from __future__ import annotations

import pytest
from hub_server_write import SIGNATURE
from publishing.hub.hub_pusher import error_of
from publishing.hub.pushed import ANN, WEIGHTS, at_head, changed, uploads_of, weights_of
from tiers import long


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("/whoami-v2", 503, "the Hub returned a server error (503)"),
        long(("/repos/create", 500, "the Hub returned a server error (500)")),
        long(("/preupload/", 503, "the Hub returned a server error (503)")),
        ("/objects/batch", 404, "the repository does not exist"),
        ("/lfs-storage/", 403, "no write access"),
        long(("/lfs-storage/", 500, "the Hub returned a server error (500)")),
        long(("/commit/", 503, "the Hub returned a server error (503)")),
        ("/commit/", 413, "the Hub refused it (413"),
        ("/commit/", 409, "being changed by someone else"),
    ],
)
def test_a_fault_changes_nothing_and_the_same_again_goes_on(hub, pusher, text_run, tmp_path, where, status, words):
    run = changed(text_run, tmp_path / "run")
    name = f"ann/ill-{status}{where.strip('/').replace('/', '-')}"
    hub.fail(where, status)
    assert words in pusher.refused(run, name, ANN)
    if ("models", name) in hub.repositories:
        assert at_head(hub, name) == {}
    hub.heal()
    pusher.push(run, name, ANN)
    assert weights_of(run).items() <= at_head(hub, name).items()
    assert uploads_of(hub, weights_of(run)[WEIGHTS]) == 1


def test_a_short_illness_is_sat_out_and_signatures_are_not_shown(hub, pusher, text_run, tmp_path):
    run = changed(text_run, tmp_path / "run")
    for where in ("/preupload/", "/objects/batch", "/lfs-storage/", "/lfs/verify"):
        hub.fail(where, 503, times=2)
    said = pusher.push(run, "ann/short-illness", ANN)["said"]
    assert "HTTP Error 503 thrown while requesting PUT" in said
    assert SIGNATURE not in said
    assert weights_of(run).items() <= at_head(hub, "ann/short-illness").items()


def test_a_hub_without_xet_is_told_with_the_way_out(hub, pusher, text_run):
    pytest.importorskip("hf_xet")
    line = pusher.refused(text_run, "ann/xet", ANN, {"WITH_XET": "1"})
    assert hub.paths("ann/xet/xet-write-token/")
    assert "ann/xet: the Hub's storage cannot be reached" in line and "HF_HUB_DISABLE_XET=1" in line
    assert at_head(hub, "ann/xet") == {}


def test_an_answer_that_makes_no_sense(hub, pusher, text_run):
    hub.garble("/refs$")
    assert "ann/nonsense: unexpected answer from the Hub (JSONDecodeError" in pusher.refused(
        text_run, "ann/nonsense", ANN
    )


def test_an_answer_that_is_lost_is_looked_up(hub, pusher, text_run):
    hub.hang_up("/commit/", at="after")
    hub.hang_up("/tag/", at="after")
    answer = pusher.push(text_run, "ann/lost", ANN, tag="v1")
    repository = hub.repositories["models", "ann/lost"]
    assert repository.tags["v1"] == repository.branches["main"] == answer["commit"]
    assert len(repository.commits) == 2


def test_slow_answers_are_waited_for_and_silence_is_not(hub, pusher, text_run):
    hub.trickle("ann/slow")
    pusher.push(text_run, "ann/slow", ANN)
    assert WEIGHTS in at_head(hub, "ann/slow")
    silent = hub.hold("/whoami-v2")
    line = pusher.refused(text_run, "ann/silent", ANN, timeout=0.2)
    silent.hang_up()
    assert "ann/silent: the Hub cannot be reached, or did not answer (ReadTimeout" in line


def test_who_comes_second_changes_nothing(hub, pusher, text_run, other_run):
    pusher.push(text_run, "ann/contested", ANN)
    held = hub.hold("/commit/")
    second = pusher.begin(other_run, "ann/contested", ANN)
    held.wait()
    repository = hub.repositories["models", "ann/contested"]
    repository.commit({"samples.txt": "meanwhile"})
    held.go_on()
    assert "changed by someone else in the meantime" in error_of(second)
    assert weights_of(text_run).items() <= at_head(hub, "ann/contested").items()
    pusher.push(other_run, "ann/contested", ANN)
    assert at_head(hub, "ann/contested")["samples.txt"] == b"meanwhile"


def test_a_repository_that_leaves_files_out_is_noticed(hub, pusher, text_run):
    pusher.push(text_run, "ann/ignoring", ANN)
    repository = hub.repositories["models", "ann/ignoring"]
    repository.commit({".gitignore": "config.json\n"}, delete=("config.json", "metrics.json"))
    assert "lacks config.json as the run has it" in pusher.refused(text_run, "ann/ignoring", ANN)


@pytest.mark.parametrize(
    ("where", "at", "is_new"),
    [
        long(("/repos/create", "after", False)),
        ("/lfs-storage/", "body", False),
        long(("/lfs-storage/", "after", False)),
        long(("/commit/", "body", False)),
        long(("/commit/", "before", False)),
        ("/commit/", "after", True),
        ("/tag/", "before", True),
        long(("/tag/", "after", True)),
    ],
)
def test_killed_at(hub, pusher, text_run, other_run, tmp_path, where, at, is_new):
    run = changed(text_run, tmp_path / "run")
    name = f"ann/killed-{where.strip('/').replace('/', '-')}-{at}"
    if where != "/repos/create":
        pusher.push(other_run, name, ANN)
    held = hub.hold(where, at)
    command = pusher.begin(run, name, ANN, tag="v1")
    held.wait()
    command.kill()
    assert command.wait() == -9
    held.hang_up()
    old = weights_of(other_run) if where != "/repos/create" else {}
    files = at_head(hub, name)
    assert {file: content for file, content in files.items() if "safetensors" in file and "json" not in file} == (
        weights_of(run) if is_new else old
    )
    answer = pusher.push(run, name, ANN, tag="v1")
    repository = hub.repositories["models", name]
    assert repository.tags["v1"] == repository.branches["main"] == answer["commit"]
    assert weights_of(run).items() <= at_head(hub, name).items()
    assert not [file for file in at_head(hub, name) if "-of-" in file]
    assert len(repository.messages) == (1 if where == "/repos/create" else 2)
    assert uploads_of(hub, weights_of(run)[WEIGHTS]) == 1


def test_the_token_is_written_nowhere(hub, pusher, text_run):
    """Neither by this push, which meets a fault, nor by any above."""
    hub.fail("/commit/", 500, times=1)
    pusher.refused(text_run, "ann/discreet", ANN)
    pusher.push(text_run, "ann/discreet", ANN)
    assert [request for request in hub.requests if request.token == ANN]
    folders = (pusher.folder, hub.folder, text_run)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if ANN.encode() in path.read_bytes()]
    assert not [path for path in hub.paths() if ANN in path]
