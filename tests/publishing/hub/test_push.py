"""Pushing to a small Hub on 127.0.0.1 (tests/hub_server.py), through an unmodified huggingface_hub: what is published
and what is refused, and to whom. Every push runs in a process of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from publishing.hub.hub_pusher import Pusher, error_of
from publishing.hub.pushed import ANN, BOB, NARROW, READS, WEIGHTS, at_head, changed, finetune, weights_of


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
        "pickle": ("is not a safetensors file", lambda folder: (folder / weights).write_bytes(b"\x80\x04")),
        "link": ("is a link to", link),
        "moved": ("is a link to a file outside", move_out),
        "part": (f"has no {weights}", lambda folder: (folder / weights).unlink()),
        "gone": (f"has no {config}", shutil.rmtree),
        "config": ("is not a readable adapter config", lambda folder: (folder / config).write_text("[]")),
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
    assert "README.md was edited after the run, and is published as it is" in said
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
    assert "ann/public already exists and is public" in again["said"]
    pusher.push(text_run, "ann/hidden", ANN)
    again = pusher.push(text_run, "ann/hidden", ANN, private=False)
    assert hub.repositories["models", "ann/hidden"].private and again["private"]
    assert "it stays private" in again["said"]


@pytest.mark.long
def test_every_task_opens_with_plain_transformers(
    hub, pusher, text_run, image_checkpoint, image_folder, whisper_checkpoint, speech_folder, tmp_path
):
    """In the quick tier the models are opened where they are: test_cards_of_runs.py."""

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
    assert "is up to date" in again["said"] and not again["changed"]
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
    assert "the tag 'v1' already exists" in pusher.refused(other_run, "ann/named", ANN, tag="v1")
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
        "moved": (
            "is a link to a file outside",
            lambda run: (run / "metrics.json").rename(tmp_path / "m.json").exists(),
        ),
        "unfinished": ("is not finished", lambda run: (run / "metrics.json").unlink()),
        "weightless": ("has no weights", lambda run: (run / "model" / WEIGHTS).unlink()),
        "empty": ("not a run folder", lambda run: (run / "recipe.yaml").unlink()),
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
    assert "is not a repository id" in pusher.refused(text_run, name, ANN)


def test_names_of_branches_and_tags_are_looked_at(pusher, text_run):
    for key, name in (("tag", "a..b"), ("revision", "refs/pr/1"), ("revision", "0" * 40), ("tag", "-x")):
        assert f"{key}: {name!r} is not a valid" in pusher.refused(text_run, "ann/x", ANN, **{key: name})


# --- who may not ---------------------------------------------------------------------------------------------


def test_who_may_not_is_told_why(hub, pusher, text_run):
    pusher.push(text_run, "ann/guarded", ANN, private=False)
    cases = [
        ("", "ann/x", "ann/x: no token for the Hub"),
        ("hf_unknowntoken0123456789", "ann/x", "ann/x: the Hub does not accept your token"),
        (READS, "ann/x", "ann/x: your token has only read access"),
        (BOB, "ann/guarded", "ann/guarded: you or your token have no write access"),
        (ANN, "bob/x", "bob/x: does not exist, and you may not create it under 'bob'"),
        (ANN, "museum/x", "museum/x: does not exist, and you have only read access"),
        (NARROW, "ann/y", "ann/y: does not exist, and your fine-grained token may not create it under 'ann'"),
    ]
    repositories = set(hub.repositories)
    for token, name, words in cases:
        assert words in pusher.refused(text_run, name, token)
    assert set(hub.repositories) == repositories
    assert pusher.push(text_run, "lab/narrow", token=NARROW)["repo_id"] == "lab/narrow"


def test_offline(monkeypatch):
    from sft_hf.core.errors import UserError
    from sft_hf.publishing.hub.access import check_access

    monkeypatch.setenv("HF_TOKEN", ANN)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):  # as it is in this process; see conftest.py
        check_access("ann/x")


@pytest.mark.long
def test_unreachable(text_run, tmp_path):
    """A Hub that answers with errors: test_push_faults.py."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens
        (tmp_path / "commands").mkdir()
        alone = Pusher(tmp_path / "commands", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "ann/x: the Hub cannot be reached" in alone.refused(text_run, "ann/x", ANN)
        alone.close()
