"""The files of a run that are published: an allowlist, without local paths and secrets."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from sft_hf.core.errors import RunFolderError, UserError
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.recipe.yaml_files import write_yaml
from sft_hf.core.redaction import redact
from sft_hf.core.run.folder import REMEDY, RunFolder, load_run_recipe
from sft_hf.core.run.record import read_record
from sft_hf.models.adapters.files import CONFIG, WEIGHTS
from sft_hf.models.folder_safety import check_folder, check_links
from sft_hf.publishing.card.adapter import adapter_card
from sft_hf.publishing.card.model_card import build_card
from sft_hf.publishing.names import is_hub_id, last_part
from sft_hf.publishing.public_recipe import public_recipe

log = logging.getLogger("sft_hf")

RUN_FILES = ("recipe.yaml", "metrics.json")
"""Files of the run folder; predictions, log, report and checkpoints are not published."""

MODEL_FILES = (
    "README.md",
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "*.model"),
    *("*.safetensors", "*.safetensors.index.json"),
)
"""Files of the model folder that `from_pretrained` reads; no code, no pickle."""

ADAPTER_CARD = "adapter/README.md"
ADAPTER_FILES = (ADAPTER_CARD, f"adapter/{CONFIG}", f"adapter/{WEIGHTS}")
"""Files of a trained adapter next to its merged model, with their folder."""

BINARY = (".safetensors", ".model")
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library

_PLACE = re.compile(r"~?/|[A-Za-z]:[/\\]")

Files = dict[str, "bytes | Path"]
"""Name in the repository -> content, or its path."""


def is_publishable(name: str) -> bool:
    """Whether a push may write or delete a file of this name."""
    if "/" in name:
        return name in ADAPTER_FILES
    return not name.startswith(".") and any(fnmatchcase(name, pattern) for pattern in (*RUN_FILES, *MODEL_FILES))


def files_of_run(folder: RunFolder) -> tuple[Files, list[str]]:
    """Return the files of a finished run to publish, and the names in its model and adapter folders that are left out.

    Text files are read only once, here, so that the content checked for secrets is the content uploaded.

    Raises RunFolderError for an unfinished or incomplete run, CheckpointError for a link out of these folders or a
    config that names a file outside of them, UserError for a file that cannot be read.
    """
    folder.refuse_unfinished()
    for name in (*RUN_FILES, folder.adapter.name):
        if not (folder.path / name).resolve().is_relative_to(folder.path.resolve()):
            raise RunFolderError(
                f"{folder.path / name}: is a link to a file outside the run folder; copy the file here"
            )
    check_folder(folder.model)
    recipe = load_run_recipe(folder.path, trust_remote_code=True)  # no code is executed
    files: Files = {}
    left_out = []
    for path in sorted(folder.model.iterdir()):
        if not (path.is_file() and is_publishable(path.name) and path.name not in RUN_FILES):
            left_out.append(path.name)
        else:
            files[path.name] = _content(path)
    _refuse_missing_weights(folder, files)
    if recipe.peft and CONFIG not in files:  # otherwise model/ already is the adapter
        adapter, others = _adapter_files(folder)
        files |= adapter
        left_out += others
    files["recipe.yaml"] = write_yaml(public_recipe(recipe)).encode()
    files["metrics.json"] = _public_json(folder.metrics_file, recipe)
    return dict(sorted(files.items())), left_out


def _adapter_files(folder: RunFolder) -> tuple[Files, list[str]]:
    """Return the files of the folder adapter/ to publish, and those left out, as paths within the run."""
    paths = sorted(folder.adapter.iterdir()) if folder.adapter.is_dir() else []
    if paths:
        check_links(folder.adapter)
    names = {f"{folder.adapter.name}/{path.name}": path for path in paths}
    files = {name: _content(path) for name, path in names.items() if is_publishable(name) and path.is_file()}
    for name in (CONFIG, WEIGHTS):
        if f"{folder.adapter.name}/{name}" not in files:
            raise RunFolderError(f"{folder.adapter}: has no {name}, which the run wrote; {REMEDY}")
    return files, [name for name in names if name not in files]


def _content(path: Path) -> bytes | Path:
    if path.suffix in BINARY:
        return path
    return public_adapter_config(path) if path.name == CONFIG else _read(path)


def public_adapter_config(path: Path) -> bytes:
    """Return an adapter's config without local paths; its pretrained model is named only if it is available to others.

    Raises UserError if it cannot be read.
    """
    try:
        config = json.loads(_read(path))
        base, on_hub = str(config.get("base_model_name_or_path")), config.get("revision") is not None
    except (ValueError, RecursionError, AttributeError):
        raise UserError(f"{path}: is not a readable adapter config; nothing was uploaded") from None
    if not (base.startswith("pypi://") or (on_hub and is_hub_id(base))):
        config["base_model_name_or_path"] = None
    return (json.dumps(_without_places(config), indent=2, sort_keys=True) + "\n").encode()


def _without_places(value: Any) -> Any:
    """Reduce absolute paths to their last part, e.g. of a tokenizer. Module patterns are unchanged."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return last_part(value) if isinstance(value, str) and _PLACE.match(value) else value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _refuse_missing_weights(folder: RunFolder, files: Files) -> None:
    wanted: set[str] = set()
    for name, content in files.items():
        if name.endswith(".index.json") and isinstance(content, bytes):
            wanted |= set(json.loads(content)["weight_map"].values())
    missing = sorted(wanted - set(files))
    if missing or not any(name.endswith(".safetensors") for name in files):
        raise RunFolderError(
            f"{folder.model}: has no weights in {missing[0] if missing else 'model.safetensors'}; {REMEDY}"
        )


def _public_json(path: Path, recipe: Recipe) -> bytes:
    try:
        metrics = json.loads(_read(path))
    except ValueError as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); {REMEDY}") from None
    return (json.dumps(public_metrics(metrics, recipe), indent=2) + "\n").encode()


def with_named_cards(files: Files, folder: RunFolder, repo_id: str, *, keep: str | None = None) -> Files:
    """Return the files with cards that describe use from the repository; edited cards are kept.

    `keep`: the name of a card that is kept in any case.

    Raises RunFolderError for unreadable results, UserError for a secret in the card.
    """
    record = read_record(folder.path, trust_remote_code=True)
    pipeline_tag = record.recipe.task.pipeline_tag
    born = Path(record.recipe.output_dir or "").name  # name of the folder when the card was written
    builders: dict[str, Callable[..., str]] = {"README.md": partial(build_card, pipeline_tag=pipeline_tag)}
    if f"adapter/{WEIGHTS}" in files:
        builders[ADAPTER_CARD] = adapter_card
    cards: Files = {}
    builders.pop(keep or "", None)
    for name, build in builders.items():
        own = [build(replace(record, name=run)).encode() for run in {record.name, born}]
        if name in files and files[name] not in own:
            log.info("%s was edited after the run, and is published as it is", name)
        else:
            cards[name] = build(record, repo_id=repo_id).encode()
    refuse_secrets(cards)
    return {**files, **cards}


def public_metrics(metrics: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return metrics without local paths: those of model, data and run are reduced to their last part."""
    public = public_recipe(recipe)
    short = {section.name: public[key]["name"] for key, section in (("model", recipe.model), ("data", recipe.data))}
    if recipe.output_dir:
        short[recipe.output_dir] = last_part(recipe.output_dir)
    paths = {path: name for path, name in short.items() if os.path.isabs(path)}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(key): clean(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [clean(inner) for inner in value]
        if isinstance(value, str):
            for path in sorted(paths, key=len, reverse=True):
                value = value.replace(path, paths[path])
        return value

    return {key: clean(value) for key, value in metrics.items()}


# --- secrets -------------------------------------------------------------------------------------------------


def refuse_secrets(files: Files) -> None:
    """Raise UserError naming the file if one contains a known token or password, or text that looks like one."""
    for name, content in files.items():
        for text in _texts(name, content):
            if redact(text) != text:
                raise UserError(
                    f"{name}: holds a token or password, or the value of an environment variable that is called so; "
                    "nothing was uploaded; remove it (if it is harmless, unset that variable)"
                )


def _texts(name: str, content: bytes | Path) -> Iterator[str]:
    """Yield the text of a file; for JSON, its strings, one per line, so that punctuation causes no false alarms."""
    if isinstance(content, Path):
        if content.suffix == ".safetensors":
            yield from _json_strings(_header(content), name)
        return
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{name}: is not UTF-8 text; nothing was uploaded") from None
    if name.endswith(".json"):
        yield from _json_strings(text, name)
    else:
        yield text


def _json_strings(text: str, name: str) -> Iterator[str]:
    try:
        # Pairs instead of a dict, which would only keep the last value of a repeated key.
        stack = [json.loads(text, object_pairs_hook=lambda pairs: [part for pair in pairs for part in pair])]
    except (ValueError, RecursionError):
        raise UserError(f"{name}: is not readable JSON; nothing was uploaded") from None
    found = []
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, str):
            found.append(value)
    yield "\n".join(found)


def _header(path: Path) -> str:
    """Return the header of a safetensors file: JSON, including the writer's metadata."""
    try:
        with open(path, "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > MAX_HEADER:
                raise ValueError
            return file.read(size).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, struct.error):
        raise UserError(f"{path}: is not a safetensors file; {REMEDY}") from None
