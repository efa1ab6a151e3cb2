"""Atomic checkpoints: written to a temporary folder, synced, described by a manifest, renamed into place.

    checkpoints/step-000120/
      model.safetensors       weights and buffers
      optimizer.safetensors   the optimizer's tensors, named "<parameter index>.<name>"
      techniques.safetensors  state of techniques, if any
      state.json              progress, schedule, identity of data and environment
      manifest.json           size and SHA-256 of every other file; written last
    checkpoints/best-000080/  the weights of the best evaluation so far, also with a manifest

Nothing is pickled. A folder whose manifest is missing or does not match, or whose best weights are lost, is not a valid
checkpoint, and resuming skips it. No random states are saved: the order of data, augmentation and dropout are functions
of (seed, epoch, row) and (seed, step, rank).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from sft_hf.core.errors import RunFolderError, StorageError
from sft_hf.core.fail_points import reach
from sft_hf.core.filesystem import committed_folder, sha256_of, sync
from sft_hf.models.freezing import trained_tensors
from sft_hf.models.quantization import is_quantized

MANIFEST, STATE, MODEL, OPTIMIZER = "manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"
TECHNIQUES = "techniques.safetensors"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    techniques: dict[str, Tensor] | None = None,
    best_step: int | None = None,
    keep: int = 1,
) -> Path:
    """Save a checkpoint, then delete all but the newest `keep`, and best weights that none of them needs.

    A valid checkpoint of this step that already exists is kept: it has the same weights. `best_step` is the step of the
    `save_best` weights that belong to it. Returns the checkpoint's folder. Raises StorageError.
    """
    target = folder / f"step-{step:06d}"
    if target.exists() and verify(target) is None:
        return target
    tensors, rest = _split_optimizer(optimizer.state_dict())
    with _described_folder(target) as aside:
        _save_weights(model, aside / MODEL)
        reach(target.name)
        save_file(tensors, aside / OPTIMIZER)
        reach(target.name)
        if techniques:
            save_file(techniques, aside / TECHNIQUES)
            reach(target.name)
        text = json.dumps({**state, "best_step": best_step, "optimizer": rest}, indent=1)
        (aside / STATE).write_text(text, encoding="utf-8")
        reach(target.name)
    _prune(folder, keep, best_step, target.name)
    return target


def _save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights; for a quantized model only the trained ones, since the others cannot be loaded again."""
    if is_quantized(model):
        save_file({name: tensor.contiguous() for name, tensor in trained_tensors(model).items()}, path)
    else:
        save_model(model, str(path))


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load the file of `_save_weights`, in place. Raises RuntimeError or SafetensorError if it does not fit."""
    if not is_quantized(model):
        load_model(model, path)
        return
    tensors, wanted = load_file(path), trained_tensors(model)
    if tensors.keys() != wanted.keys():
        raise RuntimeError(f"missing or unexpected key {min(tensors.keys() ^ wanted.keys())}")
    model.load_state_dict(tensors, strict=False)


def expected_bytes(model: nn.Module, techniques: dict[str, Tensor]) -> tuple[int, int]:
    """Return the size of one checkpoint, and the peak size of a run's folder while a second is written, in bytes.

    Assumes that the optimizer keeps two numbers per weight, as Adam does.
    """
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    one = 3 * weights + sum(tensor.nbytes for tensor in techniques.values())
    return one, 2 * one + 2 * weights + weights  # two of them, two sets of best weights, the result


@contextmanager
def _described_folder(target: Path) -> Iterator[Path]:
    """`committed_folder`, with a manifest of the files."""
    with committed_folder(target) as aside:
        yield aside
        manifest = {}
        for path in sorted(aside.iterdir()):
            sync(path)
            manifest[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        reach(target.name)


def _prune(folder: Path, keep: int, best_step: int | None, name: str) -> None:
    checkpoints = list_checkpoints(folder)
    for old in checkpoints[keep:]:
        # Renamed first: a partly deleted checkpoint would look damaged.
        doomed = old.rename(old.with_name(f".{old.name}.old"))
        reach(name)
        shutil.rmtree(doomed, ignore_errors=True)
        reach(name)
    needed = {best_step, *(_best_step(checkpoint) for checkpoint in checkpoints[:keep])}
    for best in folder.glob("best-*"):
        if best.name[5:].isdigit() and int(best.name[5:]) not in needed:
            shutil.rmtree(best, ignore_errors=True)
            reach(name)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the committed checkpoints, newest first, verified or not."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def verify(checkpoint: Path) -> str | None:
    """Return the problem with a checkpoint or its best weights, or None if all files match their manifests."""
    problem = _verify_folder(checkpoint)
    if problem or not checkpoint.name.startswith("step-"):
        return problem
    best_step = _best_step(checkpoint)
    if best_step is None:
        return None
    best = best_folder(checkpoint.parent, best_step)
    problem = _verify_folder(best)
    return f"the weights of the best evaluation that belong to it: {best.name}/{problem}" if problem else None


def _verify_folder(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {MODEL, OPTIMIZER, STATE} if folder.name.startswith("step-") else {MODEL}
        if missing := expected - manifest.keys():
            return f"{MANIFEST} does not list {sorted(missing)[0]}"
        for name, entry in manifest.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
            if sha256_of(path) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _best_step(checkpoint: Path) -> int | None:
    try:
        return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["best_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint, and a sentence about each one skipped."""
    passed_over: list[str] = []
    for checkpoint in list_checkpoints(folder):
        problem = verify(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.name} is damaged: {problem}")
    return None, passed_over


def set_aside(folder: Path, than: Path | None) -> None:
    """Rename checkpoints newer than the one resumed from: they are damaged, and would remain the newest."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint == than:
            break
        target = folder / f"damaged-{checkpoint.name}"
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the contents of state.json. Raises RunFolderError even if the manifest matches, as it may be forged."""
    with fitting(checkpoint):
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} is not a mapping")
        return state


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer in place; return state.json. Raises RunFolderError if they do not fit the recipe."""
    state = read_state(checkpoint)
    with fitting(checkpoint):
        _load_weights(model, checkpoint / MODEL)
        tensors = _load_tensors(checkpoint / OPTIMIZER)
        optimizer.load_state_dict(_join_optimizer(tensors, state.pop("optimizer")))
    return state


def load_techniques(checkpoint: Path) -> dict[str, Tensor]:
    """Return the saved tensors of techniques; empty if there are none. Raises RunFolderError."""
    path = checkpoint / TECHNIQUES
    with fitting(checkpoint):
        return _load_tensors(path) if path.exists() else {}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """Return copies of a file's tensors: loaded tensors are memory-mapped, and Windows does not delete mapped files."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Convert errors while a state is restored to RunFolderError, naming the missing or unexpected key."""
    try:
        yield
    except KeyError as error:
        raise RunFolderError(f"{checkpoint}: state.json: missing or unexpected key {error.args[0]}") from error
    except (RuntimeError, ValueError, RecursionError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{checkpoint}: does not fit this recipe's model or optimizer: {reason}") from error


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain data."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in _unwrapped(values).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def _unwrapped(values: dict[str, Any]) -> dict[str, Any]:
    """Flatten the state of bitsandbytes, which nests its 8-bit tensors (including code books that parameters share) in
    a dict per parameter, but also loads them flat."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {key: tensor.clone() for key, tensor in value.items()} if isinstance(value, dict) else {name: value}
    return flat


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


def best_folder(folder: Path, step: int) -> Path:
    """Return the folder of the weights of the evaluation after `step`."""
    return folder / f"best-{step:06d}"


def save_best(folder: Path, step: int, model: nn.Module) -> None:
    """Save these weights as the best so far; earlier ones stay while a checkpoint needs them. Raises StorageError."""
    with _described_folder(best_folder(folder, step)) as aside:
        _save_weights(model, aside / MODEL)


def load_best(folder: Path, step: int, model: nn.Module) -> None:
    """Load the weights of `save_best`, in place. Raises StorageError if they are damaged."""
    best = best_folder(folder, step)
    if problem := _verify_folder(best):
        raise StorageError(
            f"{best}: {problem}, so the best weights are lost; --resume trains them again from an earlier checkpoint"
        )
    with fitting(best):
        _load_weights(model, best / MODEL)


def clean_up(folder: Path, keep: int) -> None:
    """Delete what a finished run does not need: the best weights, which are also in model/, and corrupt folders.

    Also deletes all but `keep` checkpoints, in case the run was killed between its last save and their deletion.
    """
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    for pattern in ("best-*", "damaged-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
