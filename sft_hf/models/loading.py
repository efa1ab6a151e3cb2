"""Opening Transformers checkpoints, with errors that a user understands, and never with code from the checkpoint."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging as transformers_logging

from sft_hf.errors import CheckpointError, RecipeError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedModel

    from sft_hf.recipe import ModelSection
    from sft_hf.sources import Source

log = logging.getLogger("sft_hf")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep Transformers' load report and bars off the terminal: what matters of them is said in our own words."""
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
    """Turn what Transformers raises while opening a checkpoint into CheckpointError with one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__)[:300]
        if source.path is not None and not (source.path / "config.json").is_file():
            reason = "there is no config.json in it; a checkpoint is a folder that from_pretrained opens"
        elif source.kind == "hub":
            reason = f"{reason} (if the Hub cannot be reached, give a local folder as model.name)"
        raise CheckpointError(f"{source.name}: {what} cannot be loaded: {reason}") from error


def open_checkpoint(auto_class: Any, source: Source, what: str) -> Any:
    """Return `auto_class.from_pretrained(source)`: a config, tokenizer or processor. Raises CheckpointError."""
    with checkpoint_errors(source, what), quiet_transformers():
        return auto_class.from_pretrained(source.location(), revision=source.revision or "main")


def load_pretrained(
    auto_class: Any, config: PretrainedConfig, source: Source, section: ModelSection, head: dict[str, Any]
) -> PreTrainedModel:
    """Load a checkpoint's weights in float32, with a new head where it has none that fits.

    Args:
        auto_class: an AutoModelFor... class.
        config: the checkpoint's config; changed in place by `section.config_overrides` and `head`.
        source: where the weights are.
        section: the recipe's model section.
        head: config fields that describe the head wanted.

    Raises:
        RecipeError: an override names no field of this config.
        CheckpointError: the weights cannot be read, or are those of another architecture.
    """
    for key, value in section.config_overrides.items():
        if not hasattr(config, key):
            hint = did_you_mean(key, [name for name in config.to_dict() if not name.startswith("_")], limit=40)
            raise RecipeError(f"model.config_overrides.{key}: {config.model_type} has no such field; {hint}")
        setattr(config, key, value)
    for key, value in head.items():
        setattr(config, key, value)
    with checkpoint_errors(source, "weights"), quiet_transformers():
        model, info = auto_class.from_pretrained(
            source.location(),
            revision=source.revision or "main",
            config=config,
            attn_implementation=section.attn_implementation,
            dtype=torch.float32,  # Transformers 5 would keep a half-precision checkpoint's dtype
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = {key[0] for key in info["mismatched_keys"]}
    new = sorted(set(info["missing_keys"]) | mismatched)
    _refuse_foreign_weights(model, new, source)
    if new:
        log.info("new weights, to be learned: %s", ", ".join(new))
    return model


def _refuse_foreign_weights(model: PreTrainedModel, new: list[str], source: Source) -> None:
    """A backbone that had to be made up is no pretrained model."""
    prefix = f"{model.base_model_prefix}."
    backbone = [key for key, _ in model.named_parameters() if key.startswith(prefix)]
    made_up = [key for key in backbone if key in set(new) and "pooler" not in key]
    if backbone and len(made_up) > 0.1 * len(backbone):
        raise CheckpointError(
            f"{source.name}: {len(made_up)} of {len(backbone)} weights of {type(model).__name__} are not in it "
            f"(first: {made_up[0]}); its config and its weights are of different architectures"
        )
