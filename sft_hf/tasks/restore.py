"""Loading the model of a run: the saved (or merged) weights, or the pretrained model with the run's adapter."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GenerationConfig

from sft_hf.core.errors import CheckpointError
from sft_hf.core.recipe.recipe import ModelSection, Recipe
from sft_hf.core.sources.sources import Source, resolve_section
from sft_hf.models.adapters.attach import attach
from sft_hf.models.adapters.files import CONFIG, WEIGHTS, Adapter, adapter_tensors
from sft_hf.models.loading import pin

if TYPE_CHECKING:
    from sft_hf.tasks.base import Task

log = logging.getLogger("sft_hf")


def build_trained(task: Task[Any], recipe: Recipe, source: Source) -> Any:
    """Return the model in a folder that `Task.save` wrote; for an adapter, the run's pretrained model with the adapter.

    Raises CheckpointError for an adapter that does not fit, SourceError for a pretrained model that no longer exists.
    """
    folder = source.path
    assert folder is not None
    if not (folder / CONFIG).is_file():
        return task.build_model(source, ModelSection(name=str(folder)))
    model = recipe.model
    model = model.model_copy(update={"revision": _revision(folder) or model.revision})
    base = resolve_section(model, "model")
    with _unheard():  # messages about the new head were already logged in training
        base = pin(replace(base, trusted=source.trusted))
        task.expect_checkpoint(base)
        learner, adapter = attach(task.build_model(base, model), recipe, task.peft_task_type, base, trained=True)
    if adapter is None:
        raise CheckpointError(f"{folder}: holds an adapter, and the run's recipe.yaml has no peft section")
    if (folder / "generation_config.json").is_file():
        adapter.wrapper.get_base_model().generation_config = GenerationConfig.from_pretrained(folder)
    _load(adapter, folder)
    return learner


def _load(adapter: Adapter, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({str(error)[:200]})") from None
    expected = adapter_tensors(adapter.wrapper)
    for name in sorted({**expected, **tensors}):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            raise CheckpointError(f"{folder / WEIGHTS}: does not fit the run's peft section: {name}")
    set_peft_model_state_dict(adapter.wrapper, tensors)


def _revision(folder: Path) -> str | None:
    """Return the Hub commit of the pretrained model that the adapter was trained on."""
    try:
        value = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("revision")
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{40}", value) else None


@contextmanager
def _unheard() -> Iterator[None]:
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
