"""Matching a tokenizer and a model: padding, the maximum length of a text, and an embedding for every token."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from sft_hf.core.errors import CheckpointError

log = logging.getLogger("sft_hf")

NO_LIMIT = 10**7
"""Tokenizers without a limit have a `model_max_length` of about 10^30."""

WITHOUT_LIMIT = 512
"""Maximum number of tokens if neither the model, the tokenizer nor the recipe has a limit."""

PAD = "[PAD]"
_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")


# --- padding -------------------------------------------------------------------------------------------------------


def give_pad_token(tokenizer: Any, config: Any, name: str) -> None:
    """Make sure that a tokenizer has a padding token, which is masked and does not occur in texts.

    Decoders often have none. In this order: the padding token in the model's config, the end-of-text token, another
    special token, and else a new one, for which `fit_embeddings` adds an embedding.
    """
    if tokenizer.pad_token is not None:
        return
    special = [getattr(tokenizer, f"{kind}_token", None) for kind in ("eos", "bos", "mask", "sep", "cls")]
    number = getattr(config.get_text_config(), "pad_token_id", None) if config is not None else None
    told = tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) and number >= 0 else None
    if told in (*special, *tokenizer.all_special_tokens, "<pad>", PAD):
        special.insert(0, told)
    tokenizer.pad_token = next((str(token) for token in special if token is not None), PAD)
    if tokenizer.pad_token_id is None or tokenizer.pad_token == PAD:
        tokenizer.add_special_tokens({"pad_token": PAD})
        log.info("%s: its tokenizer has no padding token: %s is added, and masked", name, PAD)


def set_padding(config: Any, tokenizer: Any) -> None:
    """Set a config's padding token to the tokenizer's, if the pretrained model already has an embedding for it."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(size, int) or tokenizer.pad_token_id < size:
        config.pad_token_id = tokenizer.pad_token_id


def fit_inputs(tokenizer: Any, config: Any, table: int | None, *, decoder: bool) -> None:
    """Set the padding side and the input fields of a tokenizer to what the model supports.

    Padding on the left would move a text to other positions in the `table`, and away from where encoders expect the
    first token. It is kept for XLNet, which reads the last position, and for decoders without a table. A model with one
    token type has no embedding for the second text of a pair.
    """
    inner = config.get_text_config()
    if table is not None or not (decoder or inner.model_type == "xlnet"):
        tokenizer.padding_side = "right"
    if getattr(inner, "type_vocab_size", None) == 1:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]


def check_end_of_text(tokenizer: Any, config: Any, name: str) -> None:
    """Raise CheckpointError if an encoder-decoder reads the end-of-text token and the tokenizer does not add it."""
    end = getattr(config, "eos_token_id", None)
    if not getattr(config, "is_encoder_decoder", False) or end is None:
        return
    if end not in tokenizer("a")["input_ids"]:
        raise CheckpointError(
            f"{name}: a {config.model_type!r} classifier reads its answer at the end-of-text token ({end}), "
            "which this tokenizer does not add; use the tokenizer that the model was trained with"
        )


# --- the longest text ----------------------------------------------------------------------------------------------


def choose_max_length(wanted: int | None, config: Any, tokenizer: Any, table: int | None, name: str) -> int:
    """Return the maximum number of tokens of a text: `wanted`, limited by the model; None: the model's limit.

    Args:
        wanted: `task.max_length`.
        config: of the pretrained model; None for word vectors, which have no limit.
        table: the result of `position_table`.
        name: of the pretrained model, for messages.
    """
    told = tokenizer.model_max_length if 0 < tokenizer.model_max_length < NO_LIMIT else None
    trained = None if config is None else configured_limit(config)
    # Relative positions have no limit: a text may be longer than those of pretraining, if requested.
    relative = table is None and config is not None
    if relative and (trained is None or getattr(config.get_text_config(), "relative_attention", False)):
        trained, told = None, told if wanted is None else None
    limits = [limit for limit in (told, table, trained, wanted) if limit is not None]
    if not limits:
        limits = [WITHOUT_LIMIT]
        log.info(
            "%s has no limit on the length of a text; task.max_length: null uses %d tokens, give a number for more",
            *(name, WITHOUT_LIMIT),
        )
    return min(limits)


def position_table(config: Any, build: Any) -> int | None:
    """Return the number of positions that a model has embeddings for; None if it has no position table.

    `build` creates the model without weights to read the size of its tables: models like RoBERTa count positions from
    the id of the padding token, and have fewer than their config says. Raises CheckpointError if none are left.

    Args:
        build: config -> model.
    """
    try:
        with torch.device("meta"):
            model = build(_shallow(config))
    except Exception:  # the error is reported when the model is loaded with its weights
        log.debug("%s: no model without weights", config.model_type, exc_info=True)
        return None
    limit = smallest_table(model)
    if limit is not None and limit < 1:
        raise CheckpointError(
            f"a {config.model_type!r} model counts positions from the number of its padding token on, and that is "
            "beyond its table of positions; check pad_token_id and max_position_embeddings in its config.json"
        )
    return limit


def _shallow(config: Any) -> Any:
    """Return a copy with one layer if all layers are alike, to save time."""
    copied = copy.deepcopy(config)
    inner = copied.get_text_config()
    if getattr(inner, "layer_types", None) is None and getattr(inner, "model_type", "") in _ALIKE:
        inner.num_hidden_layers = 1
    return copied


_ALIKE = frozenset("bert roberta xlm-roberta mpnet electra camembert distilbert deberta deberta-v2 albert".split())


def smallest_table(model: nn.Module) -> int | None:
    """Return the number of positions in a model's smallest position table; None without a table."""
    sizes = []
    for name, module in model.named_modules():
        if not hasattr(module, "num_embeddings") or name.rpartition(".")[2] not in _TABLES or "entity" in name:
            continue
        first = getattr(module, "offset", None) or 0  # BART
        if getattr(module, "padding_idx", None) is not None and "Sinusoidal" not in type(module).__name__:
            first = max(first, module.padding_idx + 1)
        sizes.append(int(module.num_embeddings) - first)
    return min(sizes, default=None)


def configured_limit(config: Any) -> int | None:
    """Return the maximum number of positions in a config; None if it has no limit (XLNet has -1)."""
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return value if isinstance(value, int) and 0 < value < NO_LIMIT else None


# --- a vector for every token --------------------------------------------------------------------------------------


def fit_embeddings(model: Any, tokenizer: Any, name: str, *, adapted: bool) -> None:
    """Resize a model's token embeddings to the number of tokens of the tokenizer, with a warning.

    Args:
        adapted: whether an adapter is trained, which would not keep the new embeddings.

    Raises CheckpointError for a model with an adapter, or one whose embeddings cannot be resized.
    """
    numbers = tokenizer.get_vocab().values()
    needed = max(numbers, default=-1) + 1  # some ids may have no token
    embeddings = model.get_input_embeddings()
    have = getattr(embeddings, "num_embeddings", None)
    if have is None or needed <= have:
        return
    only_padding = needed == have + 1 and tokenizer.pad_token_id == have  # which is masked
    if adapted and not only_padding:
        raise CheckpointError(
            f"{name}: its tokenizer has {needed} tokens and its model {have} vectors for them; an adapter would not "
            "keep new ones: add them first (model.resize_token_embeddings(len(tokenizer)), then save both), or leave "
            "the peft section out"
        )
    try:
        model.resize_token_embeddings(needed, mean_resizing=False)
    except (NotImplementedError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: its tokenizer has {needed} tokens and its model {have} vectors for them, and a "
            f"{model.config.model_type!r} model cannot be given more ({str(error)[:100]}); use the tokenizer that it "
            "was trained with"
        ) from None
    if not only_padding:
        log.warning(
            "%s: its tokenizer has %d tokens and its model %d vectors for them: %d new vectors, to be learned",
            *(name, needed, have, needed - have),
        )
