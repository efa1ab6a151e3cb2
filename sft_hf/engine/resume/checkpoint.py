"""Checkpoints that are whole or not there: written aside, synced, described by a manifest, renamed into place.

    checkpoints/step-000120/
      model.safetensors       weights and buffers
      optimizer.safetensors   the optimizer's tensors, named "<parameter index>.<name>"
      techniques.safetensors  what techniques keep, where they keep anything
      state.json              how far the run had come, schedule, what it was trained on and with
      manifest.json           size and SHA-256 of every other file; written last
    checkpoints/best-000080/  the weights of the best evaluation so far, likewise with a manifest

Nothing is a pickle. A folder whose manifest is missing or does not match is not a checkpoint, and neither is one whose
best weights are lost: resuming passes over it. There are no random states to save: the order of data, augmentation and
dropout are functions of (seed, epoch, row) and (seed, step, rank).
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
    """Commit a checkpoint, then delete all but the newest `keep`, and the best weights that none of them needs.

    A checkpoint of this step that is there already and verifies is left alone: it holds the same weights.
    `best_step` names the weights of `save_best` that belong to it. Returns its folder. Raises StorageError.
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
    """Write a model's weights; of a quantized one those that are trained, which alone can be loaded into it again."""
    if is_quantized(model):
        save_file({name: tensor.contiguous() for name, tensor in trained_tensors(model).items()}, path)
    else:
        save_model(model, str(path))


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load what `_save_weights` wrote, in place. Raises RuntimeError, SafetensorError for what does not fit."""
    if not is_quantized(model):
        load_model(model, path)
        return
    tensors, wanted = load_file(path), trained_tensors(model)
    if tensors.keys() != wanted.keys():
        raise RuntimeError(f"missing or unexpected key {min(tensors.keys() ^ wanted.keys())}")
    model.load_state_dict(tensors, strict=False)


def expected_bytes(model: nn.Module, techniques: dict[str, Tensor]) -> tuple[int, int]:
    """Return the size of one checkpoint, and the most that a run's folder takes while a second is written.

    An optimizer is taken to keep two numbers for each weight, as Adam does.
    """
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    one = 3 * weights + sum(tensor.nbytes for tensor in techniques.values())
    return one, 2 * one + 2 * weights + weights  # two of them, two sets of best weights, the result


@contextmanager
def _described_folder(target: Path) -> Iterator[Path]:
    """`committed_folder`, with a manifest of what was written."""
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
        # Renamed first: half a deletion would look like damage.
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
    """Return what is wrong with a checkpoint, its best weights included, or None if all is as the manifests say."""
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
    """Return the newest checkpoint that verifies, and a sentence on each one passed over."""
    passed_over: list[str] = []
    for checkpoint in list_checkpoints(folder):
        problem = verify(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.name} is damaged: {problem}")
    return None, passed_over


def set_aside(folder: Path, than: Path | None) -> None:
    """Rename checkpoints newer than the one resumed from: they are damaged, and would pass for the newest for ever."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint == than:
            break
        target = folder / f"damaged-{checkpoint.name}"
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what state.json holds. Raises RunFolderError, though the checkpoint verified: manifests can be forged."""
    with fitting(checkpoint):
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} is not a mapping")
        return state


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer in place; return state.json. Raises RunFolderError if they do not fit this recipe."""
    state = read_state(checkpoint)
    with fitting(checkpoint):
        _load_weights(model, checkpoint / MODEL)
        tensors = _load_tensors(checkpoint / OPTIMIZER)
        optimizer.load_state_dict(_join_optimizer(tensors, state.pop("optimizer")))
    return state


def load_techniques(checkpoint: Path) -> dict[str, Tensor]:
    """Return what techniques kept; empty where they kept nothing. Raises RunFolderError."""
    path = checkpoint / TECHNIQUES
    with fitting(checkpoint):
        return _load_tensors(path) if path.exists() else {}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors, copied: as they are loaded, they are the file, which Windows then does not delete."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Turn what goes wrong while a state is put back into RunFolderError, naming what is missing or too much."""
    try:
        yield
    except KeyError as error:
        raise RunFolderError(f"{checkpoint}: state.json: missing or unexpected key {error.args[0]}") from error
    except (RuntimeError, ValueError, RecursionError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{checkpoint}: does not fit this recipe's model or optimizer: {reason}") from error


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take an optimizer's state apart into tensors and plain data."""
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
    """bitsandbytes wraps its 8-bit state, code books that parameters share among it, in a dict within each parameter's;
    it takes it back without."""
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
    """Return where the weights of the evaluation after `step` are kept."""
    return folder / f"best-{step:06d}"


def save_best(folder: Path, step: int, model: nn.Module) -> None:
    """Keep these weights as the best so far; the ones before stay until no checkpoint needs them. StorageError."""
    with _described_folder(best_folder(folder, step)) as aside:
        _save_weights(model, aside / MODEL)


def load_best(folder: Path, step: int, model: nn.Module) -> None:
    """Load what `save_best` kept, in place. Raises StorageError if it is damaged."""
    best = best_folder(folder, step)
    if problem := _verify_folder(best):
        raise StorageError(
            f"{best}: {problem}, so the best weights are lost; --resume trains them again from an earlier checkpoint"
        )
    with fitting(best):
        _load_weights(model, best / MODEL)


def clean_up(folder: Path, keep: int) -> None:
    """Delete what a finished run does not need: the best weights, which are also in model/, and corrupt folders.

    And all but `keep` checkpoints: a run that died just after its last save had not come to that.
    """
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    for pattern in ("best-*", "damaged-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
