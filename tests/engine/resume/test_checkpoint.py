"""Damage to a checkpoint is always found; a run goes back to the one before, or says what does not fit."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
import yaml
from tiers import long, quick

from sft_hf.engine.resume.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, verify

FILES = (
    "step-000020/model.safetensors",
    "step-000020/optimizer.safetensors",
    "step-000020/state.json",
    "step-000020/manifest.json",
    "best-000010/model.safetensors",
    "best-000010/manifest.json",
)


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def shorten(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_bit(path, bit=None):
    data = bytearray(path.read_bytes())
    bit = len(data) * 4 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES = (delete, empty, halve, shorten, flip_bit)
ALL = [(name, damage) for name in FILES for damage in DAMAGES]
EACH_ONCE = [(name, DAMAGES[place % len(DAMAGES)]) for place, name in enumerate(FILES)]


@pytest.fixture(scope="module")
def interrupted(commands, commands_module, recipe_file, tmp_path_factory):
    """A run that died before its last save, with checkpoints of steps 16 and 20 and best weights; and the whole."""
    folder = tmp_path_factory.mktemp("interrupted")
    arguments = ("finetune", str(recipe_file), "checkpoint.save_total_limit=2", "--output-dir")
    whole = commands.run(*arguments, str(folder / "whole"))
    assert whole.wait() == 0, whole.said()
    died = commands.run(*arguments, str(folder / "died"), SFT_HF_FAIL_POINT="step-000022:1")
    assert died.wait() == -9
    return folder / "died", arguments, commands_module.fingerprint(folder / "whole")


@pytest.fixture
def copy(interrupted, tmp_path):
    shutil.copytree(interrupted[0], tmp_path / "run")
    return tmp_path / "run"


def existing(folder, name):
    """`best-000010/...` stands for whichever evaluation was best when the newest checkpoint was saved."""
    if name.startswith("best-"):
        best_step = json.loads((folder / "step-000020" / "state.json").read_text())["best_step"]
        name = f"best-{best_step:06d}/{name.split('/')[1]}"
    return folder / name


@pytest.mark.parametrize(("name", "damage"), ALL)
def test_damage_is_found(copy, name, damage):
    damage(existing(copy / "checkpoints", name))
    assert verify(copy / "checkpoints" / "step-000020") is not None


@pytest.mark.parametrize(("name", "damage"), quick(EACH_ONCE[1::3], ALL))
def test_after_damage_the_run_goes_back(commands, commands_module, interrupted, copy, name, damage):
    _, arguments, whole = interrupted
    damage(existing(copy / "checkpoints", name))
    resumed = commands.run(*arguments, str(copy), "--resume")
    assert resumed.wait() == 0, resumed.said()
    assert "step-000020 is damaged: " in resumed.said()
    assert "resuming from step-000016" in resumed.said() or name.startswith("best-")
    assert commands_module.fingerprint(copy) == whole


@pytest.mark.parametrize("stride", [29, long(1)])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("manifest.json")])
def test_every_bit_of_a_manifest_counts(copy, name, stride):
    path = existing(copy / "checkpoints", name)
    plain = path.read_bytes()
    for bit in range(0, 8 * len(plain), stride):
        flip_bit(path, bit)
        assert verify(path.parent) is not None, bit
        path.write_bytes(plain)
    assert verify(path.parent) is None


def test_with_every_checkpoint_damaged_a_run_starts_anew_and_says_so(commands, commands_module, interrupted, copy):
    _, arguments, whole = interrupted
    for path in copy.glob("checkpoints/step-*/state.json"):
        empty(path)
    resumed = commands.run(*arguments, str(copy), "--resume")
    assert resumed.wait() == 0
    assert resumed.said().count("is damaged: state.json has 0 bytes") == 2
    assert "no usable checkpoint: starting from the first step" in resumed.said()
    assert commands_module.fingerprint(copy) == whole


class Wrapping(torch.optim.AdamW):
    """Keeps a tensor that all parameters share, and wraps its state as bitsandbytes' optimizers of 8 bits do."""

    SHARED = torch.arange(4.0)

    def state_dict(self):
        found = super().state_dict()
        found["state"] = {
            index: {"step": 2, "wrapped": {"state1": (state["exp_avg"] * 100).to(torch.uint8), "qmap1": self.SHARED}}
            for index, state in found["state"].items()
        }
        return found

    def load_state_dict(self, state_dict):
        self.loaded = state_dict["state"]


def test_state_in_eight_bits_and_wrapped_once_more_comes_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = Wrapping(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = save_checkpoint(tmp_path, 1, model, optimizer, {})
    load_checkpoint(folder, model, optimizer)
    assert optimizer.loaded.keys() == {0, 1}
    for index, state in optimizer.state_dict()["state"].items():
        found = optimizer.loaded[index]
        assert found["step"] == 2 and found["state1"].dtype == torch.uint8
        assert found.keys() == {"step", *state["wrapped"]}
        assert all(torch.equal(found[name], tensor) for name, tensor in state["wrapped"].items())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name}


def rewrite_state(folder, change):
    """Change state.json of the newest checkpoint, with a manifest that agrees."""
    from sft_hf.core.filesystem import sha256_of

    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("identity"), ["no 'identity' entry"]),
        (lambda state: state["identity"].pop("task"), ["task.labels is missing from it"]),
        (lambda state: state["identity"]["data"].update(train="0" * 64), ["data.train was", "is now"]),
        (lambda state: state["identity"].update(num_processes=4), ["num_processes was 4 and is now 1"]),
        (lambda state: state["identity"].update(recipe_sha256="0"), ["recipe_sha256 was '0'"]),
        (
            lambda state: state["identity"]["environment"].update(num_threads=7),
            ["environment.num_threads was 7 and is now 1", "--other-environment"],
        ),
        (
            lambda state: state["identity"]["environment"]["versions"].update(torch="1.0"),
            ["environment.versions.torch was '1.0'", "--other-environment"],
        ),
        (lambda state: state.pop("scheduler"), ["scheduler"]),
        (lambda state: state["train_state"].pop("step_in_epoch"), ["step_in_epoch"]),
        (lambda state: state["optimizer"]["param_groups"].pop(), ["does not fit"]),
    ],
)
def test_what_is_missing_or_different_is_named(commands, interrupted, copy, change, words):
    _, arguments, _ = interrupted
    rewrite_state(copy, change)
    before = contents(copy)
    resumed = commands.run(*arguments, str(copy), "--resume")
    assert resumed.wait() == 2, resumed.said()
    error = resumed.said().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error
    assert contents(copy) == before


def test_another_environment_can_be_accepted(commands, interrupted, copy):
    _, arguments, _ = interrupted
    rewrite_state(copy, lambda state: state["identity"]["environment"].update(num_threads=7))
    resumed = commands.run(*arguments, str(copy), "--resume", "--other-environment")
    assert resumed.wait() == 0
    assert "num_threads was 7 and is now 1; the last bits may differ" in resumed.said()


@pytest.mark.parametrize("change", [long("label"), long("row"), "order"])
def test_other_data_are_refused(commands, recipe_file, data_folder, tmp_path, change):
    data = tmp_path / "data"
    shutil.copytree(data_folder, data)
    arguments = ("finetune", str(recipe_file), f"data.name={data}", "--output-dir", str(tmp_path / "run"))
    assert commands.run(*arguments, SFT_HF_FAIL_POINT="step-000008:1").wait() == -9
    lines = (data / "train.csv").read_text().splitlines()
    if change == "label":
        lines[5] = lines[5].rsplit(",", 1)[0] + "," + ("food" if lines[5].endswith("sport") else "sport")
    elif change == "row":
        lines[5] = lines[6]
    else:
        lines[4], lines[7] = lines[7], lines[4]
    (data / "train.csv").write_text("\n".join(lines) + "\n")
    resumed = commands.run(*arguments, "--resume")
    assert resumed.wait() == 2, resumed.said()
    assert "cannot be resumed: data." in resumed.said()


def test_a_finished_run_has_nothing_to_resume(commands, recipe_file, tmp_path):
    arguments = ("finetune", str(recipe_file), "train.max_steps=2", "--output-dir", str(tmp_path / "run"))
    assert commands.run(*arguments).wait() == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = commands.run(*arguments, "--resume")
    assert again.wait() == 0
    assert "nothing to resume" in again.said()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_time_based_saving(commands, recipe_file, tmp_path):
    text = yaml.safe_load(recipe_file.read_text())
    text["checkpoint"] = {"save_steps": 1000, "save_minutes": 1e-6, "save_total_limit": 100}
    path = tmp_path / "often.yaml"
    path.write_text(yaml.safe_dump(text))
    assert commands.run("finetune", str(path), "--output-dir", str(tmp_path / "run")).wait() == 0
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 22
