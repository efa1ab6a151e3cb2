"""Loading Transformers models, with readable errors, and without running code that comes with a model."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import errors as hub_errors
from transformers.utils import cached_file, extract_commit_hash
from transformers.utils import logging as transformers_logging

from sft_hf.core.errors import CheckpointError, RecipeError, SftError, StorageError, causes_of, did_you_mean
from sft_hf.core.filesystem import STORAGE_ERRNOS
from sft_hf.core.sources.hub import unasked
from sft_hf.core.sources.sources import local_hint
from sft_hf.models import image_inputs
from sft_hf.models.folder_safety import CONFIGS, INDEXES, check_config, check_folder, check_index
from sft_hf.models.freezing import note_new_weights
from sft_hf.models.quantization import loading_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedModel

    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

# Without a safetensors file Transformers would ask a service, in a separate thread, to open a pull request with one.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


ADAPTER = "adapter_config.json"
"""If a folder has this file, Transformers loads another model and inserts the adapter into it."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence Transformers' load report and progress bars; this package logs what matters."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def checkpoint_errors(source: Source, what: str) -> Iterator[None]:
    """Turn exceptions of Transformers while loading a model into a one-line CheckpointError (or StorageError).

    Inside, no requests are sent to the Hub if it was found to be unreachable.
    """
    try:
        with unasked(source.offline):
            yield
    except (MemoryError, SftError):
        raise
    except Exception as error:
        # SafetensorError, UnpicklingError and the rest have no common base.
        causes = causes_of(error)
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
                raise StorageError(f"{source.name}: {what}: {cause.strerror}") from error
        hint = local_hint(source.name) if source.kind == "hub" else ""
        raise CheckpointError(f"{source.name}: {what} cannot be loaded: {_explain(causes, source)}{hint}") from error


def _explain(causes: list[BaseException], source: Source) -> str:
    lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
    reason = (lines[0] if lines else type(causes[0]).__name__)[:300]
    if any(type(cause).__name__ == "UnpicklingError" for cause in causes):
        return "the file contains pickled objects other than tensors, which are not loaded; use safetensors files"
    if "custom code" in reason or "trust_remote_code" in reason:
        return (
            "it needs custom code, which is not run; use a model of a type that Transformers knows, "
            "or read that code and allow it on the command line with model.trust_remote_code=true"
        )
    if source.path is not None:
        if not (source.path / "config.json").is_file():
            inside = next(iter(sorted(source.path.glob("*/config.json"))), None)
            hint = "give a folder that from_pretrained opens"
            return f"there is no config.json in it; {f'did you mean {inside.parent}?' if inside else hint}"
        return reason
    for cause in causes:
        if isinstance(cause, hub_errors.GatedRepoError):
            return "it is gated: accept its conditions on its page, then `hf auth login`"
        if isinstance(cause, hub_errors.RevisionNotFoundError):
            return f"there is no revision {source.revision!r} of it; check model.revision"
        if isinstance(cause, hub_errors.RepositoryNotFoundError):
            return "it was not found, or is private; check model.name, or `hf auth login`"
        if isinstance(cause, hub_errors.HfHubHTTPError) and cause.response.status_code == 401:
            return "the Hub does not accept the token; check HF_TOKEN, or `hf auth login`"
    if any(isinstance(cause, (hub_errors.LocalEntryNotFoundError, hub_errors.HfHubHTTPError)) for cause in causes):
        return "the Hub cannot be reached, and there is no copy in the cache; try again, or give a local folder"
    return reason


def pin(source: Source) -> Source:
    """Return a Hub source pinned to the current commit of its revision, so that config and weights match.

    Raises CheckpointError for a model that does not exist or that the user may not access.
    """
    if source.path is not None:
        return source
    with checkpoint_errors(source, "config.json"):
        file = cached_file(source.name, "config.json", revision=source.revision or "main")
        pinned = replace(source, revision=extract_commit_hash(file, None) or source.revision)
        for name in (*CONFIGS, *INDEXES):
            if path := cached_file(
                source.name, name, revision=pinned.revision, _raise_exceptions_for_missing_entries=False
            ):
                if name == ADAPTER:
                    raise _no_checkpoint(source)
                check_index(Path(path)) if name in INDEXES else check_config(Path(path), Path(path).parent)
    return pinned


def refuse_adapter(source: Source) -> None:
    """Raise CheckpointError for a local folder with an adapter."""
    if source.path is not None and (source.path / ADAPTER).is_file():
        raise _no_checkpoint(source)


def _no_checkpoint(source: Source) -> CheckpointError:
    return CheckpointError(
        f"{source.name}: holds an adapter ({ADAPTER}) for another model; give that model, or merge the adapter into it "
        "first"
    )


def open_checkpoint(auto_class: Any, source: Source, what: str) -> Any:
    """Return `auto_class.from_pretrained(source)`: a config, tokenizer or processor. Raises CheckpointError."""
    with checkpoint_errors(source, what), quiet_transformers():
        if source.path is not None and source.path.is_dir():
            check_folder(source.path)
        # False, not None: with None, Transformers asks on the terminal whether to run the model's code.
        return auto_class.from_pretrained(
            source.location(), revision=source.revision or "main", trust_remote_code=source.trusted
        )


def opens(auto_class: Any, config: PretrainedConfig, source: Source) -> bool:
    """Whether an AutoModelFor... class supports the model's type, or its own code does and may run."""
    own = getattr(config, "auto_map", None) or {}
    return type(config) in auto_class._model_mapping or (source.trusted and auto_class.__name__ in own)


def apply_overrides(config: PretrainedConfig, section: ModelSection, head: dict[str, Any]) -> None:
    """Apply `model.config_overrides` and the head to a config. Raises RecipeError for an unknown field."""
    inner = config.get_text_config()  # of a `sentence_encoder`, and of models for text and images
    for key, value in section.config_overrides.items():
        if not hasattr(config, key) and not hasattr(inner, key):
            hint = did_you_mean(key, [name for name in config.to_dict() if not name.startswith("_")], limit=40)
            raise RecipeError(f"model.config_overrides.{key}: {config.model_type} has no such field; {hint}")
        setattr(config if key in vars(config) or not hasattr(inner, key) else inner, key, value)
    for key, value in head.items():
        setattr(config, key, value)


def load_pretrained(
    auto_class: Any, config: PretrainedConfig, source: Source, section: ModelSection, head: dict[str, Any]
) -> PreTrainedModel:
    """Load a pretrained model in float32, or as `model.quantization` says, with a new head if its own does not fit.

    Args:
        auto_class: an AutoModelFor... class.
        config: the model's config; changed in place by `section.config_overrides` and `head`.
        source: the source of the weights.
        section: the recipe's model section.
        head: config fields that describe the requested head.

    Raises:
        RecipeError: an override is not a field of the config, or `model.quantization` is not available.
        CheckpointError: the weights cannot be read, or belong to another architecture or to an adapter.
    """
    refuse_adapter(source)
    before = image_inputs.before_overrides(config, section.config_overrides)
    apply_overrides(config, section, head)

    def opened(config: PretrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        with checkpoint_errors(source, "weights"), quiet_transformers():
            return auto_class.from_pretrained(
                source.location(),
                revision=source.revision or "main",
                config=config,
                trust_remote_code=source.trusted,
                attn_implementation=section.attn_implementation,
                dtype=torch.float32,  # Transformers 5 would keep the dtype of half-precision weights
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **loading_options(section),
            )

    model, info = opened(config)
    mismatched = {key[0] for key in info["mismatched_keys"]}
    if before is not None:
        mismatched -= image_inputs.adapt(model, mismatched, before, lambda: opened(before)[0], source.name)
    new = sorted(set(info["missing_keys"]) | mismatched)
    _refuse_foreign_weights(model, new, source)
    if new:
        log.info("randomly initialized weights: %s", ", ".join(new))
    note_new_weights(model, new)
    return model


def _refuse_foreign_weights(model: PreTrainedModel, new: list[str], source: Source) -> None:
    """Raise CheckpointError if more than a tenth of the backbone's weights are newly initialized."""
    prefix = f"{model.base_model_prefix}."
    backbone = [key for key, _ in model.named_parameters() if key.startswith(prefix)]
    made_up = [key for key in backbone if key in set(new) and "pooler" not in key]
    if backbone and len(made_up) > 0.1 * len(backbone):
        raise CheckpointError(
            f"{source.name}: {len(made_up)} of {len(backbone)} weights of {type(model).__name__} are not in it "
            f"(first: {made_up[0]}); its config and its weights are of different architectures"
        )
