"""Pushing to a small Hub on 127.0.0.1 (tests/hub_server.py), through an unmodified huggingface_hub.

Every push runs in a process of its own; those that are killed get SIGKILL while the Hub holds their request.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import hub_server
import pytest
import safetensors.torch
import torch
import yaml
from hub_server_write import SIGNATURE
from publishing.hub.hub_pusher import Pusher, error_of

ANN, READS, BOB, NARROW = (f"hf_{name}0123456789abcdefghijk" for name in ("annscanary", "reads", "bobs", "narrow"))
USERS = {
    ANN: hub_server.User("ann", organizations=("lab",), only_reads=("museum",)),
    READS: hub_server.User("ann", role="read"),
    BOB: hub_server.User("bob"),
    NARROW: hub_server.User(
        "ann", "fineGrained", ("lab",), scopes={"lab": ("repo.write",), "ann": ("repo.content.read",)}
    ),
}
NUMBERS = itertools.count(2)
WEIGHTS = "model.safetensors"
QUICK = {"mixed_precision": "no", "num_threads": 1, "max_steps": 2, "per_device_train_batch_size": 4}


def finetune(task: dict[str, Any], checkpoint: Path, data: Path, folder: Path, seed: int = 42, **others: Any) -> Path:
    from sft_hf.recipe import validate_recipe
    from sft_hf.run import finetune as run_finetune

    sections: dict[str, Any] = {"model": {"name": str(checkpoint)}, "data": {"name": str(data)}, "train": QUICK}
    run_finetune(validate_recipe({"task": task, **sections, "seed": seed, "output_dir": str(folder), **others}))
    return folder


@pytest.fixture(scope="module")
def text_run(checkpoint, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "text"
    return finetune({"name": "text_classification", "max_length": 32}, checkpoint, data_folder, folder)


@pytest.fixture(scope="module")
def adapter_run(checkpoint, data_folder, tmp_path_factory):
    """A model with its adapter merged, and the adapter."""
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    task = {"name": "text_classification", "max_length": 32}
    section = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    return finetune(task, checkpoint, data_folder, folder, peft=section, optim={"learning_rate": 3e-2})


@pytest.fixture(scope="module")
def other_run(text_run, tmp_path_factory):
    """The same model with other weights, in two shards."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(text_run, folder)
    tensors = safetensors.torch.load((folder / "model" / WEIGHTS).read_bytes())
    (folder / "model" / WEIGHTS).unlink()
    names, index = sorted(tensors), {}
    for number in (0, 1):
        shard = f"model-0000{number + 1}-of-00002.safetensors"
        half = {name: tensors[name] + 1 for name in names[number::2]}
        safetensors.torch.save_file(half, folder / "model" / shard, {"format": "pt"})
        index |= dict.fromkeys(half, shard)
    (folder / "model" / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The Hub, and what pushes to it."""
    folder = tmp_path_factory.mktemp("hub")
    hub = hub_server.HubServer(folder / "repositories")
    hub.users, hub.tokens = USERS, set(USERS)
    with hub:
        (folder / "commands").mkdir()
        pusher = Pusher(folder / "commands", hub.url)
        yield hub, pusher
        pusher.close()


@pytest.fixture
def hub(served):
    hub = served[0]
    yield hub
    hub.heal()
    hub.lfs_chunk_size = None


@pytest.fixture
def pusher(served):
    return served[1]


def at_head(hub: Any, name: str, branch: str = "main") -> dict[str, bytes]:
    """The files of a repository, without the Hub's own .gitattributes."""
    repository = hub.repositories["models", name]
    commit = repository.branches[branch]
    files = {file: (repository.folder / commit / file).read_bytes() for file in repository.files(commit)}
    return {file: content for file, content in files.items() if file != ".gitattributes"}


def weights_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")}


def uploads_of(hub: Any, content: bytes) -> int:
    return hub.uploads.count(hashlib.sha256(content).hexdigest())


def changed(run: Path, folder: Path) -> Path:
    """A copy of a run whose weights no Hub has seen."""
    shutil.copytree(run, folder)
    tensors = safetensors.torch.load((folder / "model" / WEIGHTS).read_bytes())
    number = next(NUMBERS)
    marked = {name: tensor + number for name, tensor in tensors.items()}
    safetensors.torch.save_file(marked, folder / "model" / WEIGHTS, {"format": "pt"})
    return folder


# --- what is published ---------------------------------------------------------------------------------------


def test_a_push_is_one_private_commit_of_what_may_be_published(hub, pusher, text_run, tmp_path):
    run = tmp_path / "mine"
    shutil.copytree(text_run, run)
    for name in (
        "pytorch_model.bin",
        "own.py",
        ".hidden.json",
        "notes.txt",
        "recipe.yaml",
        "optimizer.safetensors.tmp",
    ):
        (run / "model" / name).write_text("private")
    (run / "model" / "sub").mkdir()
    (run / "model" / "sub" / "config.json").write_text("{}")
    (run / "report.html").write_text("private")
    answer = pusher.push(run, "first", ANN, message="As it came out")
    assert answer["repo_id"] == "ann/first" and answer["private"] and answer["changed"]
    repository = hub.repositories["models", "ann/first"]
    assert repository.private and repository.branches["main"] == answer["commit"]
    assert len(repository.commits) == 2  # the Hub's own first one, and ours
    assert repository.messages[repository.branches["main"]] == "As it came out"
    files = at_head(hub, "ann/first")
    model = {"README.md", "config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == set(answer["files"]) == {*model, "recipe.yaml", "metrics.json"}
    assert files[WEIGHTS] == (run / "model" / WEIGHTS).read_bytes()
    left_out, code, uploading = answer["said"].splitlines()  # and no progress bar
    assert left_out == (
        "not published: .hidden.json, notes.txt, optimizer.safetensors.tmp, own.py, pytorch_model.bin, recipe.yaml, sub"
    )
    assert code.startswith("code is never published")
    assert uploading.startswith("uploading 7 files (") and uploading.endswith(" to ann/first")
    # and no file tells where on this machine it was made
    assert not [name for name, content in files.items() if str(tmp_path.parent.parent).encode() in content]
    assert yaml.safe_load(files["recipe.yaml"])["task"]["name"] == "text_classification"
    assert json.loads(files["metrics.json"])["test"] == json.loads((run / "metrics.json").read_text())["test"]
    assert b"ann/first" in files["README.md"]


def test_an_adapter_is_published_beside_its_merged_model_and_opens_as_the_card_says(
    hub, pusher, adapter_run, checkpoint, tmp_path
):
    run = tmp_path / "tuned"
    shutil.copytree(adapter_run, run)
    (run / "adapter" / "adapter_model.bin").write_text("private")
    answer = pusher.push(run, "ann/adapted", ANN)
    assert len(hub.repositories["models", "ann/adapted"].commits) == 2  # the Hub's own first one, and ours
    assert "not published: adapter/adapter_model.bin\n" in answer["said"]
    files = at_head(hub, "ann/adapted")
    beside = {f"adapter/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")}
    assert {name for name in files if "/" in name} == beside < set(answer["files"]) == set(files)
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter/adapter_model.safetensors"] == weights
    # no file tells where on this machine it was made, and otherwise the config is the run's
    assert not [name for name, content in files.items() if str(tmp_path.parent.parent).encode() in content]
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoint)
    assert json.loads(files["adapter/adapter_config.json"]) == {**config, "base_model_name_or_path": None}
    for card in ("README.md", "adapter/README.md"):
        code = re.findall(r"```python\n(.*?)```", files[card].decode(), re.DOTALL)[-1]
        assert 'PeftModel.from_pretrained(base, "ann/adapted", subfolder="adapter")' in code
        assert code.count(f'"./{checkpoint.name}"') == 1
        code = code.replace(f'"./{checkpoint.name}"', repr(str(checkpoint)))
        done = pusher.run("logits", code, "ann/adapted", HF_TOKEN=ANN)
        assert done.wait() == 0, done.said()
        base, adapted, merged = (torch.tensor(value) for value in json.loads(done.said().splitlines()[-1]))
        assert torch.allclose(adapted, merged, rtol=0, atol=1e-4) and (base - merged).abs().max() > 1e-2
    again = pusher.push(run, "ann/adapted", ANN)
    assert not again["changed"] and again["commit"] == answer["commit"]


def test_an_adapter_is_replaced_and_removed_with_its_run_and_nothing_else_is(hub, pusher, adapter_run, text_run):
    pusher.push(adapter_run, "ann/once-adapted", ANN)
    hub.repositories["models", "ann/once-adapted"].commit({"adapter/notes.txt": "somebody's"})
    pusher.push(text_run, "ann/once-adapted", ANN)
    assert [name for name in at_head(hub, "ann/once-adapted") if "/" in name] == ["adapter/notes.txt"]


def test_an_adapter_with_a_secret_a_link_or_a_part_missing_is_refused(hub, pusher, adapter_run, tmp_path):
    before = len(hub.requests)
    (tmp_path / "outside.json").write_text("{}")
    config, weights = "adapter_config.json", "adapter_model.safetensors"

    def with_secret(folder: Path) -> None:
        tensors = safetensors.torch.load((folder / weights).read_bytes())
        safetensors.torch.save_file(tensors, folder / weights, {"format": "pt", "by": SECRET})

    def move_out(folder: Path) -> None:
        folder.rename(folder.parents[1] / "elsewhere")
        folder.symlink_to(folder.parents[1] / "elsewhere")

    def link(folder: Path) -> None:
        (folder / config).unlink()
        (folder / config).symlink_to(tmp_path / "outside.json")

    cases = {
        "secret": (f"adapter/{weights}: holds a token", with_secret),
        "pickle": ("is no safetensors file", lambda folder: (folder / weights).write_bytes(b"\x80\x04")),
        "link": ("is a link to", link),
        "moved": ("is a link out of the run folder", move_out),
        "part": (f"has no {weights}", lambda folder: (folder / weights).unlink()),
        "gone": (f"has no {config}", shutil.rmtree),
        "config": ("is no adapter's config", lambda folder: (folder / config).write_text("[]")),
    }
    for name, (words, change) in cases.items():
        run = tmp_path / name
        shutil.copytree(adapter_run, run)
        change(run / "adapter")
        assert words in pusher.refused(run, "ann/none", ANN)
    assert len(hub.requests) == before


def test_an_edited_card_is_published_as_it_is(hub, pusher, text_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(text_run, run)
    (run / "model" / "README.md").write_text("My own words.\n")
    said = pusher.push(run, "ann/own-card", ANN)["said"].splitlines()
    assert at_head(hub, "ann/own-card")["README.md"] == b"My own words.\n"
    assert "README.md is not as the run wrote it, and is published as it is" in said
    # and what the Hub has to say of it is heard
    warned = "Warnings while validating metadata in README.md: - empty or missing yaml metadata in repo card"
    assert warned in said
    (run / "model" / "README.md").write_text("---\nlicense: [\n---\nMy own words.\n")
    assert "Invalid metadata in README.md" in pusher.refused(run, "ann/own-card", ANN)


def test_a_new_repository_is_public_only_if_so_said_and_an_old_one_stays_as_it_is(hub, pusher, text_run):
    pusher.push(text_run, "ann/public", ANN, private=False)
    assert not hub.repositories["models", "ann/public"].private
    again = pusher.push(text_run, "ann/public", ANN)
    assert not hub.repositories["models", "ann/public"].private and not again["private"]
    assert "ann/public is there already, and public" in again["said"]
    pusher.push(text_run, "ann/hidden", ANN)
    again = pusher.push(text_run, "ann/hidden", ANN, private=False)
    assert hub.repositories["models", "ann/hidden"].private and again["private"]
    assert "is there already, and private: it stays so" in again["said"]


def test_every_task_opens_with_plain_transformers(
    hub, pusher, text_run, image_checkpoint, image_folder, whisper_checkpoint, speech_folder, tmp_path
):
    image = finetune({"name": "image_classification"}, image_checkpoint, image_folder, tmp_path / "image")
    speech = finetune({"name": "speech_recognition"}, whisper_checkpoint, speech_folder, tmp_path / "speech")
    inputs = {
        "text-classification": (text_run, "the team won the match"),
        "image-classification": (image, str(next(image_folder.glob("test/red/*.png")))),
        "automatic-speech-recognition": (speech, str(speech_folder / "test" / "00.wav")),
    }
    for task, (run, value) in inputs.items():
        answer = pusher.push(run, f"ann/{run.name}", ANN)
        place = f"{answer['repo_id']}@{answer['commit']}"
        done = pusher.run("load", task, value, place, str(run / "model"), HF_TOKEN=ANN)
        assert done.wait() == 0, done.said()
        remote, local = json.loads(done.said().splitlines()[-1])
        assert remote == local


def test_the_same_again_makes_no_commit_and_sends_nothing(hub, pusher, text_run):
    first = pusher.push(text_run, "ann/again", ANN)
    before = len(hub.requests)
    again = pusher.push(text_run, "ann/again", ANN)
    assert "holds all of it already" in again["said"] and not again["changed"]
    assert again["commit"] == first["commit"]
    assert not [request for request in hub.requests[before:] if request.method in ("POST", "PUT")]


def test_another_run_replaces_what_the_first_left_and_nothing_else(hub, pusher, text_run, other_run):
    pusher.push(other_run, "ann/replaced", ANN)
    hub.repositories["models", "ann/replaced"].commit({"samples.txt": "somebody's", "onnx/config.json": "{}"})
    pusher.push(text_run, "ann/replaced", ANN)
    files = at_head(hub, "ann/replaced")
    assert [name for name in files if "safetensors" in name] == [WEIGHTS]
    assert files["samples.txt"] == b"somebody's" and files["onnx/config.json"] == b"{}"
    assert ".gitattributes" in hub.repositories["models", "ann/replaced"].files(
        hub.repositories["models", "ann/replaced"].branches["main"]
    )


def test_branch_and_tag(hub, pusher, text_run, other_run):
    pusher.push(text_run, "ann/named", ANN)
    answer = pusher.push(other_run, "ann/named", ANN, revision="shards", tag="v1")
    repository = hub.repositories["models", "ann/named"]
    assert repository.branches["shards"] == repository.tags["v1"] == answer["commit"]
    assert answer["url"].endswith("/ann/named/tree/shards")
    assert weights_of(other_run).items() <= at_head(hub, "ann/named", "shards").items()
    assert at_head(hub, "ann/named").keys() >= {WEIGHTS}
    # a tag stays where it is: the same again is fine, another commit is not
    pusher.push(other_run, "ann/named", ANN, revision="shards", tag="v1")
    assert "there is a tag 'v1' already" in pusher.refused(other_run, "ann/named", ANN, tag="v1")
    assert WEIGHTS in at_head(hub, "ann/named")
    assert "is a tag" in pusher.refused(text_run, "ann/named", ANN, revision="v1")


def test_large_files_go_in_parts(hub, pusher, text_run, tmp_path):
    run = changed(text_run, tmp_path / "run")
    hub.lfs_chunk_size = 20_000
    hub.hang_up("/lfs-storage/.*/2$", at="body")  # tried again by huggingface_hub
    pusher.push(run, "ann/parts", ANN)
    assert hub.paths("/lfs-complete/")
    assert weights_of(run).items() <= at_head(hub, "ann/parts").items()


# --- what is refused before anything is sent -----------------------------------------------------------------

SECRET = "hf_plantedsecret0123456789abc"
PLANTED = {
    "config.json": lambda text: json.dumps({**json.loads(text), "note": SECRET}),
    "tokenizer_config.json": lambda text: text.replace(
        "{", '{"note": "' + SECRET.replace("hf_", "\\u0068f_") + '",', 1
    ),
    "README.md": lambda text: text + "\nhttps://me:correcthorse@example.com/\n",
    "vocab.txt": lambda text: text + "the-value-of-a-variable\n",
}


@pytest.mark.parametrize("name", [*PLANTED, WEIGHTS, "metrics.json"])
def test_a_file_with_a_secret_is_refused_and_nothing_is_sent(hub, pusher, text_run, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(text_run, run)
    path = run / "model" / name
    if name == WEIGHTS:
        safetensors.torch.save_file(safetensors.torch.load(path.read_bytes()), path, {"format": "pt", "by": SECRET})
    elif name == "metrics.json":
        (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), "note": SECRET}))
    else:
        path.write_text(PLANTED[name](path.read_text() if path.exists() else ""))
    before = len(hub.requests)
    done = pusher.begin(run, "ann/secret", ANN, {"MY_API_KEY": "the-value-of-a-variable"})
    assert f"{name}: holds a token or password" in error_of(done)
    assert SECRET not in done.said() and "correcthorse" not in done.said()
    assert len(hub.requests) == before


def test_what_leads_out_of_the_run_and_what_is_no_run_is_refused(hub, pusher, text_run, tmp_path):
    before = len(hub.requests)
    (tmp_path / "outside.json").write_text("{}")
    cases = {
        "linked": ("is a link to", lambda run: (run / "model" / "vocab.json").symlink_to(tmp_path / "outside.json")),
        "moved": ("is a link out", lambda run: (run / "metrics.json").rename(tmp_path / "m.json").exists()),
        "unfinished": ("is not finished", lambda run: (run / "metrics.json").unlink()),
        "weightless": ("has no weights", lambda run: (run / "model" / WEIGHTS).unlink()),
        "empty": ("no run folder", lambda run: (run / "recipe.yaml").unlink()),
    }
    for name, (words, change) in cases.items():
        run = tmp_path / name
        shutil.copytree(text_run, run)
        change(run)
        if name == "moved":
            (run / "metrics.json").symlink_to(tmp_path / "m.json")
        assert words in pusher.refused(run, "ann/none", ANN)
    assert "no such run folder" in pusher.refused(tmp_path / "nothing", "ann/none", ANN)
    assert len(hub.requests) == before


@pytest.mark.parametrize("name", ["a/b/c", "-x", "ann/x--y", "ann/x.git", "ann/", "a b"])
def test_an_invalid_name_is_refused(pusher, text_run, name):
    assert "is no repository id" in pusher.refused(text_run, name, ANN)


def test_names_of_branches_and_tags_are_looked_at(pusher, text_run):
    for key, name in (("tag", "a..b"), ("revision", "refs/pr/1"), ("revision", "0" * 40), ("tag", "-x")):
        assert f"{key}: {name!r} is no name" in pusher.refused(text_run, "ann/x", ANN, **{key: name})


# --- who may not ---------------------------------------------------------------------------------------------


def test_who_may_not_is_told_why(hub, pusher, text_run):
    pusher.push(text_run, "ann/guarded", ANN, private=False)
    cases = [
        ("", "ann/x", "ann/x: the Hub knows no token of yours"),
        ("hf_unknowntoken0123456789", "ann/x", "ann/x: the Hub does not accept your token"),
        (READS, "ann/x", "ann/x: your token may only read"),
        (BOB, "ann/guarded", "ann/guarded: you may not write to it"),
        (ANN, "bob/x", "bob/x: is not there, and you may not create it under 'bob'"),
        (ANN, "museum/x", "museum/x: is not there, and in 'museum' you may only read"),
        (NARROW, "ann/y", "ann/y: is not there, and your fine-grained token may not create it under 'ann'"),
    ]
    repositories = set(hub.repositories)
    for token, name, words in cases:
        assert words in pusher.refused(text_run, name, token)
    assert set(hub.repositories) == repositories
    assert pusher.push(text_run, "lab/narrow", token=NARROW)["repo_id"] == "lab/narrow"


def test_offline_and_unreachable(text_run, tmp_path, monkeypatch):
    from sft_hf.errors import UserError
    from sft_hf.publishing.hub.access import check_access

    monkeypatch.setenv("HF_TOKEN", ANN)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):  # as it is in this process; see conftest.py
        check_access("ann/x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens
        (tmp_path / "commands").mkdir()
        alone = Pusher(tmp_path / "commands", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "ann/x: the Hub cannot be reached" in alone.refused(text_run, "ann/x", ANN)
        alone.close()


# --- a Hub that is ill ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("/whoami-v2", 503, "the Hub has a fault (503)"),
        ("/repos/create", 500, "the Hub has a fault (500)"),
        ("/preupload/", 503, "the Hub has a fault (503)"),
        ("/objects/batch", 404, "the Hub knows no such repository"),
        ("/lfs-storage/", 403, "you may not write to it"),
        ("/lfs-storage/", 500, "the Hub has a fault (500)"),
        ("/commit/", 503, "the Hub has a fault (503)"),
        ("/commit/", 413, "the Hub refused it (413"),
        ("/commit/", 409, "somebody else is changing it"),
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
    assert "ann/nonsense: the Hub's answer makes no sense (JSONDecodeError" in pusher.refused(
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
    assert "somebody else changed it in the meantime, and nothing was changed" in error_of(second)
    assert weights_of(text_run).items() <= at_head(hub, "ann/contested").items()
    pusher.push(other_run, "ann/contested", ANN)
    assert at_head(hub, "ann/contested")["samples.txt"] == b"meanwhile"


def test_a_repository_that_leaves_files_out_is_noticed(hub, pusher, text_run):
    pusher.push(text_run, "ann/ignoring", ANN)
    repository = hub.repositories["models", "ann/ignoring"]
    repository.commit({".gitignore": "config.json\n"}, delete=("config.json", "metrics.json"))
    assert "lacks config.json as the run has it" in pusher.refused(text_run, "ann/ignoring", ANN)


# --- killed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "at", "is_new"),
    [
        ("/repos/create", "after", False),
        ("/lfs-storage/", "body", False),
        ("/lfs-storage/", "after", False),
        ("/commit/", "body", False),
        ("/commit/", "before", False),
        ("/commit/", "after", True),
        ("/tag/", "before", True),
        ("/tag/", "after", True),
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
