"""Runs to push, the Hub of tests/hub_server.py, and the process that pushes to it."""

from __future__ import annotations

import json
import shutil

import hub_server
import pytest
import safetensors.torch
from publishing.hub.hub_pusher import Pusher
from publishing.hub.pushed import USERS, WEIGHTS, finetune


@pytest.fixture(scope="session")
def text_run(checkpoint, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "text"
    return finetune({"name": "text_classification", "max_length": 32}, checkpoint, data_folder, folder)


@pytest.fixture(scope="session")
def adapter_run(checkpoint, data_folder, tmp_path_factory):
    """A model with its adapter merged, and the adapter."""
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    task = {"name": "text_classification", "max_length": 32}
    section = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    return finetune(task, checkpoint, data_folder, folder, peft=section, optim={"learning_rate": 3e-2})


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
