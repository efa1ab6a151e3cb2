"""The identity of a run: the data, labels, processes and versions that must match when it is resumed.

Resuming with other rows, another order of labels or more processes would be a different run; resuming with other
versions or threads would change the last bits. Both are reported by name before training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sft_hf.core.errors import RunFolderError
from sft_hf.core.recipe.recipe import NON_IDENTITY_KEYS
from sft_hf.core.recipe.yaml_files import flatten

ENVIRONMENT = "environment"
"""The part that may differ if the user allows it: it changes only the last bits of results."""


def identity_of(
    *,
    recipe: Mapping[str, Any],
    data: Mapping[str, str],
    task: Mapping[str, Any],
    model_revision: str | None,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the identity as plain data.

    Args:
        recipe: the resolved recipe; the output folder and mirrors are ignored.
        data: {split: fingerprint of its rows}.
        task: the meaning of the outputs (label names, vocabulary).
        model_revision: the commit of a pretrained model on the Hub.
        environment: `process.environment`; the platform's name is ignored.
    """
    settings = {key: value for key, value in recipe.items() if key not in NON_IDENTITY_KEYS}
    for key in ("model", "data"):
        settings[key] = {name: value for name, value in settings[key].items() if name not in ("mirror", "license")}
    return {
        "recipe_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "data": dict(data),
        "task": dict(task),
        "model_revision": model_revision,
        "num_processes": environment["num_processes"],
        ENVIRONMENT: {key: value for key, value in environment.items() if key not in ("platform", "num_processes")},
    }


def check_identity(saved: Any, now: Mapping[str, Any], where: str, *, other_environment: bool) -> list[str]:
    """Compare the identity saved in a checkpoint with the current one.

    Returns a sentence about each difference that `other_environment` allows. Raises RunFolderError naming the items
    that are missing or differ.
    """
    if not isinstance(saved, dict):
        raise RunFolderError(f"{where}: state.json has no 'identity' entry; start another run")
    flat_saved, flat_now = flatten(saved), flatten(now)
    refused: list[str] = []
    allowed: list[str] = []
    for key in sorted({**flat_now, **flat_saved}):
        if key not in flat_saved:
            refused.append(f"{key} is missing from it")
        elif flat_saved[key] != flat_now.get(key):
            sentence = f"{key} was {_short(flat_saved[key])} and is now {_short(flat_now.get(key))}"
            (allowed if key.startswith(f"{ENVIRONMENT}.") else refused).append(sentence)
    if refused:
        raise RunFolderError(f"{where}: cannot be resumed: {_list(refused)}; restore that, or start another run")
    if allowed and not other_environment:
        raise RunFolderError(
            f"{where}: resuming would not be exact: {_list(allowed)}; restore that, or allow results that differ "
            "in the last bits with --other-environment (in Python: other_environment=True)"
        )
    return allowed


def _list(sentences: list[str], limit: int = 4) -> str:
    more = f" (and {len(sentences) - limit} more)" if len(sentences) > limit else ""
    return "; ".join(sentences[:limit]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
