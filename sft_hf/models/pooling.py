"""The pooling of a sentence encoder's token vectors, read from the files of sentence-transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.utils import cached_file

from sft_hf.core.errors import CheckpointError
from sft_hf.core.sources.sources import Source
from sft_hf.models.loading import checkpoint_errors, opens
from sft_hf.models.sentence_encoder import SentenceEncoderConfig, can_pool

log = logging.getLogger("sft_hf")

MODULES, DEFAULT = "modules.json", "1_Pooling/config.json"
MARKS = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")
"""Any of these files marks a sentence-transformers model."""

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
_SUPPORTED = ("cls", "mean", "max", "last")
_CHOOSE = "set model.pooling to cls, mean, max or last"


def choose_pooling(config: PretrainedConfig, source: Source, wanted: str) -> str | None:
    """Return the pooling of a new head on the token vectors of a pretrained model; None: use the model's own head.

    Args:
        config: of the pretrained model. If a run has saved it with such a head, its pooling is set to `wanted`.
        wanted: `model.pooling`.

    Raises CheckpointError for a pooling that is not supported, or a model without token vectors.
    """
    if isinstance(config, SentenceEncoderConfig):
        config.pooling = config.pooling if wanted == "auto" else wanted
        return None
    trained_head = any("ForSequenceClassification" in name for name in config.architectures or ())
    if wanted == "auto" and trained_head:
        return None
    pooling = checkpoint_pooling(source) if wanted == "auto" else wanted
    if pooling is not None and not can_pool(config):
        if wanted == "auto":
            log.warning("%s: its %s pooling cannot be put on a %s model", source.name, pooling, config.model_type)
            return None
        raise CheckpointError(
            f"{source.name}: model.pooling: a {config.model_type!r} model has no token vectors to pool"
        )
    # Classifiers of decoders read the last token already; ours also takes token vectors, and can be requested.
    reads_last = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    if (
        wanted == "auto"
        and pooling == "last"
        and reads_last
        and opens(AutoModelForSequenceClassification, config, source)
    ):
        return None
    return pooling


def checkpoint_pooling(source: Source) -> str | None:
    """Return the pooling (cls, mean, max or last) of a sentence-transformers model; None for any other model.

    Returns None with a warning for a sentence-transformers model without this information. Raises CheckpointError for
    another kind of pooling, or a file that cannot be read.
    """
    modules = _read(source, MODULES)
    path = DEFAULT
    if isinstance(modules, list):
        kinds = {_kind(module): module for module in modules if isinstance(module, dict)}
        if "Pooling" in kinds:
            path = f"{str(kinds['Pooling'].get('path') or '1_Pooling').strip('/')}/config.json"
        if other := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
            log.warning("%s: these sentence-transformers modules are not used: %s", source.name, ", ".join(other))
    elif source.path is None and not source.name.startswith("sentence-transformers/"):
        return None  # on the Hub, every such model has the file
    config = _read(source, path)
    if config is None:
        if source.path is None or modules is not None or any(_read(source, name) is not None for name in MARKS[1:]):
            log.warning(
                "%s is a sentence-transformers model, but its pooling is unknown (it has no %s): the head of its "
                "architecture is used; if you know the pooling, %s",
                *(source.name, path, _CHOOSE),
            )
        return None
    return _only_mode(config, f"{source.name}: {path}")


def _kind(module: dict[str, Any]) -> str:
    """Return the class name of a module: Pooling for "sentence_transformers.models.Pooling"."""
    return str(module.get("type", "")).rpartition(".")[2]


def _only_mode(config: Any, where: str) -> str:
    named = config.get("pooling_mode") if isinstance(config, dict) else None
    if isinstance(named, str):  # a newer form: {"pooling_mode": "mean"}
        modes = [{"lasttoken": "last", "cls_token": "cls"}.get(named, named)]
    elif isinstance(named, list):
        modes = [str(mode) for mode in named]
    else:
        modes = [mode for key, mode in _MODES.items() if isinstance(config, dict) and config.get(key) is True]
    if len(modes) != 1 or modes[0] not in _SUPPORTED:
        told = f"requests {' and '.join(modes)} pooling, which is not supported" if modes else "names no pooling mode"
        raise CheckpointError(f"{where} {told}; {_CHOOSE}")
    return modes[0]


def _read(source: Source, name: str) -> Any:
    """Return the content of a JSON file of the model; None if there is no such file."""
    if source.path is not None:
        file = source.path / name
        if not file.resolve().is_relative_to(source.path.resolve()) and not source.path.is_symlink():
            raise CheckpointError(f"{source.name}: {MODULES} names a path outside of the model's folder: {name}")
        found: str | None = str(file) if file.is_file() else None
    else:
        with checkpoint_errors(source, name):
            found = cached_file(
                source.name,
                name,
                revision=source.revision or "main",
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,  # offline: a file that is not cached
            )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source.name}: {name} cannot be read ({error})") from None
