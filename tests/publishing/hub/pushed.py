"""Runs that are pushed, who pushes them, and what the Hub has of them afterwards."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import hub_server
import safetensors.torch

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
    from sft_hf.core.recipe.recipe import validate_recipe
    from sft_hf.jobs.finetune import finetune as run_finetune

    sections: dict[str, Any] = {"model": {"name": str(checkpoint)}, "data": {"name": str(data)}, "train": QUICK}
    run_finetune(validate_recipe({"task": task, **sections, "seed": seed, "output_dir": str(folder), **others}))
    return folder


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
