"""Checks that the files of a model refer only to files in the same folder.

A config that points elsewhere could have other files read, and published. Transformers 5.23 opens any path in `vocab`
and `merges` of a tokenizer_config.json, the shards in an index, and the base model of an adapter_config.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_hf.core.errors import CheckpointError

CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "adapter_config.json",
)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MAX_BYTES = 1 << 26  # per file; the largest index of a real model has a few megabytes

_LABELS = ("_name_or_path", "name_or_path", "chat_template")  # informational, or not a path
_FILES = ("vocab", "merges", "spm")  # keys that name a file, in addition to those that end in _file


def check_folder(folder: Path) -> None:
    """Raise CheckpointError if a file in a model's folder links or refers to a file outside of it."""
    check_links(folder)
    for name in CONFIGS:
        if (folder / name).is_file():
            check_config(folder / name, folder)
    for name in INDEXES:
        if (folder / name).is_file():
            check_index(folder / name)


def check_links(folder: Path) -> None:
    """Raise CheckpointError if a file in a folder is a link to a file outside of it."""
    root = _root(folder)
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(f"{path}: is a link to {path.resolve()}, outside its folder; copy the file here")


def _root(folder: Path) -> Path:
    """Return the folder that links may point into: the folder itself, or in the Hub's cache the repository's folder,
    with `blobs` next to `snapshots`."""
    folder = folder.resolve()
    return folder.parents[1] if folder.parent.name == "snapshots" and len(folder.parents) > 1 else folder


def check_config(path: Path, folder: Path) -> None:
    """Raise CheckpointError for a value that names a file outside of `folder`."""
    for key, value in _strings(_read(path)):
        name = key.rsplit(".", 1)[-1]
        if name in _LABELS or len(value) > 4096 or "\n" in value or "\0" in value:
            continue
        names_file = name.endswith("_file") or name in _FILES
        outside = os.path.isabs(value) or ".." in Path(value).parts
        base_model = path.name == "adapter_config.json" and name == "base_model_name_or_path"
        if (outside and (names_file or base_model or (folder / value).is_file())) or (
            name in _FILES and not (folder / value).is_file()
        ):
            raise CheckpointError(
                f"{path}: {key} names {value[:200]!r}, outside its folder; files there are not opened"
            )


def check_index(path: Path) -> None:
    """Raise CheckpointError for a shard that is not a plain file name."""
    data = _read(path)
    shards = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(shards, dict):
        raise CheckpointError(f"{path}: has no weight_map")
    for shard in sorted({str(shard) for shard in shards.values()}):
        if os.path.isabs(shard) or ".." in Path(shard).parts:
            raise CheckpointError(f"{path}: weight_map names {shard[:200]!r}, outside its folder")


def _read(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes; a config has no more than {MAX_BYTES}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not readable JSON ({str(error)[:100]})") from None


def _strings(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, string) for every string in nested data, without recursion."""
    stack = [(prefix, data)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            stack += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(f"{key}[]", item) for item in value]
