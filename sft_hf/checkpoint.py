"""Checkpoints that are whole or not there: written aside, synced, described by a manifest, renamed into place.

    checkpoints/step-000120/
      model.safetensors       weights
      optimizer.safetensors   the optimizer's tensors, named "<parameter index>.<name>"
      state.json              how far the run had come, schedule, recipe, versions
      manifest.json           size and SHA-256 of every other file; written last
    checkpoints/best.safetensors   the weights of the best evaluation so far

Nothing is a pickle. A folder whose manifest is missing or does not match is no checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from sft_hf.errors import RunFolderError
from sft_hf.filesystem import committed_folder, sha256_of, storage_errors, sync


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Commit a checkpoint, then delete all but the newest `keep`. Returns its folder. Raises StorageError."""
    target = folder / f"step-{step:06d}"
    tensors, rest = _split_optimizer(optimizer.state_dict())
    with committed_folder(target) as aside:
        save_model(model, str(aside / "model.safetensors"))
        save_file(tensors, aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps({**state, "optimizer": rest}, indent=1), encoding="utf-8")
        manifest = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(aside.iterdir())
        }
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the committed checkpoints, newest first, verified or not."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def verify(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as its manifest says."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
            if sha256_of(path) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and a sentence on each one passed over."""
    passed_over: list[str] = []
    for checkpoint in list_checkpoints(folder):
        problem = verify(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.name} is damaged: {problem}")
    return None, passed_over


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer in place; return state.json. Raises RunFolderError if they do not fit this recipe."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    try:
        load_model(model, checkpoint / "model.safetensors")
        tensors = load_file(checkpoint / "optimizer.safetensors")
        optimizer.load_state_dict(_join_optimizer(tensors, state.pop("optimizer")))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{checkpoint}: does not fit this recipe's model or optimizer: {reason}") from error
    return state


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take an optimizer's state apart into tensors and plain data."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["state"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    groups = [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def save_best(folder: Path, model: nn.Module) -> None:
    """Keep these weights as the best so far. Raises StorageError."""
    path = folder / "best.safetensors"
    aside = folder / ".best.safetensors.tmp"
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(aside))
        sync(aside)
        os.replace(aside, path)


def load_best(folder: Path, model: nn.Module) -> None:
    """Load what `save_best` kept, in place."""
    load_model(model, folder / "best.safetensors")
