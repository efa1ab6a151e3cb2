"""The `peft` section: PEFT adapters in a model of any task.

PEFT replaces layers of the model in place, so the model keeps its class: code that uses its encoder, its windows or its
`generate` works without looking through a wrapper. (Transformers' `add_adapter` does the same but cannot merge;
a `PeftModel` around the model would hide it.) Virtual tokens (prefix and prompt tuning, p-tuning) are not layers: for
these methods the `PeftModel` itself is trained.

The pretrained weights are frozen and run in evaluation mode (`sft_hf.models.freezing`), because batch norm statistics
are not saved with the adapter. The new head is trained in full and saved with the adapter (`modules_to_save`).

Sources: E. Hu et al., LoRA, 2021; S. Liu et al., DoRA, 2024; H. Liu et al., (IA)^3, 2022; X. Li and P. Liang,
Prefix-Tuning, 2021.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Conv1D

from sft_hf.core.errors import RecipeError, SftError, did_you_mean
from sft_hf.models.adapters.files import Adapter
from sft_hf.models.adapters.settings import adapter_config, output_of
from sft_hf.models.freezing import backbone_names
from sft_hf.models.quantization import check_quantized, is_quantized
from sft_hf.models.token_limits import configured_limit, smallest_table

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

PROJECTIONS = (("query", "value"), ("q_proj", "v_proj"), ("query_proj", "value_proj"), ("q_lin", "v_lin"))
"""Names of the query and value projections in Transformers, which the authors of LoRA adapt."""

IA3_PROJECTIONS = (("key", "value"), ("k_proj", "v_proj"), ("key_proj", "value_proj"), ("k_lin", "v_lin"))
FUSED = (("Wqkv",), ("qkv",), ("c_attn",), ("query_key_value",))

UNTRAINED_BY_DESIGN = "masked_spec_embed"  # Wav2Vec2's vector for masked steps (SpecAugment), unused in inference


def attach(
    model: Any, recipe: Recipe, task_type: str | None, source: Source, *, trained: bool = False
) -> tuple[Any, Adapter | None]:
    """Insert the recipe's adapter into a model, in place; return the module to train, and the adapter.

    With an empty `peft` section, these are the unchanged model and None. Parts that are already frozen (`train.freeze`)
    stay frozen, including their adapters.

    Args:
        model: the untrained model, with its head.
        task_type: PEFT's name of the task, see `Task.peft_task_type`.
        source: the source of the pretrained model.
        trained: whether a trained adapter will be loaded into it.

    Raises RecipeError for settings that PEFT, the model or the task do not support.
    """
    if not recipe.peft:
        return model, None
    check_quantized(model, recipe.model)
    config = adapter_config(recipe.peft, task_type)
    config.inference_mode = trained
    _refuse_models(model, config, recipe)
    size, names = sum(parameter.numel() for parameter in model.parameters()), frozenset(model.state_dict())
    frozen = _frozen_modules(model)
    _choose_modules(model, config, frozen)
    wrapper = _wrap(model, config)
    learner = wrapper if config.is_prompt_learning else wrapper.get_base_model()
    if config.peft_type == "PREFIX_TUNING":
        _hand_over_prefix(wrapper)
    from sft_hf.models.formats.ctranslate2 import transformers_source  # imports Whisper's classes, which few runs need

    config.base_model_name_or_path, config.revision = source.name, source.revision
    converted = transformers_source(source) is not source
    adapter = Adapter(wrapper, _output(wrapper, output_of(recipe.peft)), names, converted=converted)
    if not trained:
        _freeze_within(learner, frozen, recipe.train.freeze)
        count = sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad)
        log.info("trained: %d weights, in addition to %d of the model (%.2f %%)", count, size, 100 * count / size)
    return learner, adapter


def head_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules of the head: those that are new, or new for this task.

    Each is the largest module without parameters of the backbone. Empty if the pretrained model has all that the task
    needs (Whisper). Raises RecipeError for a new weight that is in no such module.
    """
    names = [name for name, _ in model.named_parameters()]
    head = {name for name in getattr(model, "new_weights", ()) if name in set(names)}
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        with suppress(RecipeError):  # it has no separate head
            head = set(names) - set(backbone_names(model))
    head = {name for name in head if not name.endswith(UNTRAINED_BY_DESIGN)}
    found: list[str] = []
    for module, _ in model.named_modules():  # a module comes before those within it
        inside = {name for name in names if name.startswith(f"{module}.")}
        if module and inside and inside <= head:
            found.append(module)
            head -= inside
    if head:
        raise RecipeError(
            f"peft: the pretrained model has no {min(head)}, and an adapter neither trains nor keeps such a weight; "
            "leave the peft section out, or use a model that has it"
        )
    return found


# --- modules to adapt ----------------------------------------------------------------------------------------------


def _refuse_models(model: Any, config: Any, recipe: Recipe) -> None:
    kind = config.peft_type.value
    model_type = getattr(model.config, "model_type", "")
    if model_type == "word_embeddings":
        raise RecipeError("peft: a model on word vectors is small, and is trained whole; leave the peft section out")
    if not config.is_prompt_learning:
        return
    if recipe.task.modality != "text":
        raise RecipeError(
            f"peft.peft_type: {kind} puts virtual tokens before a text, and {recipe.task.name} has none; use LORA"
        )
    if kind == "PREFIX_TUNING":
        if recipe.train.gradient_checkpointing:
            raise RecipeError("train.gradient_checkpointing: prefix tuning cannot recompute activations; leave it out")
        if _cache_name(model) is None:
            raise RecipeError(
                f"peft.peft_type: {kind} needs a model that takes a cache of keys and values, which "
                f"{type(model).__name__} does not; use LORA, or PROMPT_TUNING"
            )
    limit, tokens = smallest_table(model) or configured_limit(model.config), config.num_virtual_tokens or 0
    longest = getattr(recipe.task, "max_length", None) or 512
    if limit and min(longest, limit) + tokens > limit:
        raise RecipeError(
            f"peft.num_virtual_tokens: {tokens} virtual tokens and texts of {min(longest, limit)} are more than the "
            f"{limit} positions of {model_type}; set task.max_length to {max(limit - tokens, 0)} or less"
        )


def _frozen_modules(model: nn.Module) -> set[str]:
    """Return the names of modules with parameters, all of which are frozen."""
    return {
        name
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    }


def _choose_modules(model: nn.Module, config: Any, frozen: set[str]) -> None:
    """Set what the section leaves open in the config (the head and the modules to adapt), and check all names."""
    head = [name for name in head_modules(model) if name not in frozen]
    if hasattr(config, "modules_to_save"):
        _check_names(model, config.modules_to_save, "modules_to_save")
        wanted = list(dict.fromkeys([*(config.modules_to_save or ()), *head]))
        config.modules_to_save = wanted or None
    elif head:
        raise RecipeError(
            f"peft.peft_type: {config.peft_type.value} cannot save additional modules, but the new head "
            f"{', '.join(head)} must be trained; use LORA"
        )
    if not hasattr(config, "target_modules"):
        return
    if config.target_modules is None and not getattr(config, "target_parameters", None):
        _choose_targets(model, config, head)
    if config.peft_type == "IA3" and config.feedforward_modules is None and not _peft_knows(model, config):
        config.feedforward_modules = []
    targets = config.target_modules
    if isinstance(targets, str) and targets.lower() == "all-linear":
        _check_linear(model, head)
    else:
        _check_names(model, targets, "target_modules")
    _check_names(model, getattr(config, "exclude_modules", None), "exclude_modules")


def _peft_knows(model: Any, config: Any) -> bool:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    known: Any = getattr(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "target_module_mapping", {})
    return getattr(model.config, "model_type", None) in known


def _choose_targets(model: nn.Module, config: Any, head: list[str]) -> None:
    """Choose targets if PEFT has no default: attention projections, else linear layers, else 1 x 1 convolutions."""
    if _peft_knows(model, config):
        return
    linear, pointwise = _layers(model, head)
    last = {name.rsplit(".", 1)[-1] for name in linear}
    wanted = (*(IA3_PROJECTIONS if config.peft_type == "IA3" else PROJECTIONS), *FUSED)
    config.target_modules = next((list(names) for names in wanted if set(names) <= last), None)
    if config.target_modules is None:
        config.target_modules = linear or pointwise or None
    if config.target_modules is None:
        raise RecipeError(f"peft.target_modules: name the modules of {type(model).__name__} to adapt")
    several = len(config.target_modules) > 4
    kind = "linear layers" if linear else "1 x 1 convolutions"
    said = f"all {len(config.target_modules)} {kind}" if several else ", ".join(config.target_modules)
    log.info("peft.target_modules: %s (PEFT has no default for this model)", said)


def _layers(model: nn.Module, head: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers and of the 1 x 1 convolutions outside the head."""
    outside = {
        name: module
        for name, module in model.named_modules()
        if not any(name == part or name.startswith(f"{part}.") for part in head)
    }
    linear = [name for name, module in outside.items() if isinstance(module, (nn.Linear, Conv1D))]
    pointwise = [
        name
        for name, module in outside.items()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ]
    return linear, pointwise


def _check_linear(model: nn.Module, head: list[str]) -> None:
    linear, pointwise = _layers(model, head)
    if not linear:
        hint = f"name convolutions, e.g. {pointwise[0].rsplit('.', 1)[-1]}" if pointwise else "name other modules"
        raise RecipeError(
            f"peft.target_modules: {type(model).__name__} has no linear layer outside its head; leave it out, or {hint}"
        )


def _check_names(model: nn.Module, wanted: Any, key: str) -> None:
    """Raise RecipeError for a name or pattern that matches no module; in a list, PEFT silently ignores such a name.

    A string is a regular expression for the whole name; in a list, each entry is a name or its end, from a dot on.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if isinstance(wanted, str):
        try:
            found = any(re.fullmatch(wanted, name) for name in names)
        except re.error as error:
            raise RecipeError(f"peft.{key}: {wanted!r} is not a regular expression ({error})") from None
        if not found:
            raise RecipeError(
                f"peft.{key}: no module's whole name matches {wanted!r}; names are like {names[len(names) // 2]}; for "
                f"the end of a name, write a list: [{wanted}]"
            )
        return
    last = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    for entry in wanted or ():
        if not any(name == entry or name.endswith(f".{entry}") for name in names):
            known = names if "." in str(entry) else [name for name in last if not name.isdigit()]
            raise RecipeError(f"peft.{key}: no module is called {entry!r}; {did_you_mean(str(entry), known)}")


# --- insertion ----------------------------------------------------------------------------------------------------


def _wrap(model: nn.Module, config: Any) -> Any:
    from peft import get_peft_model

    own = ("classifier", "score")  # PEFT adds these to every text classifier by itself
    if config.task_type == "SEQ_CLS" and getattr(config, "modules_to_save", None):
        config.modules_to_save = [name for name in config.modules_to_save if name not in own] or None
    with peft_errors():
        return get_peft_model(model, config)  # type: ignore[arg-type]


@contextmanager
def peft_errors() -> Iterator[None]:
    """Turn PEFT's exceptions about its settings into a one-line RecipeError, and its warnings into log messages."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except (MemoryError, torch.OutOfMemoryError, SftError):
        raise
    except Exception as error:  # no common base: ValueError, TypeError, AttributeError, NotImplementedError, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"peft: PEFT rejects these settings for this model: {reason}") from error
    told = [message for message in caught if not issubclass(message.category, (DeprecationWarning, FutureWarning))]
    for text in dict.fromkeys(" ".join(str(message.message).split()) for message in told):
        log.warning("peft: %s", text[:300])


def _freeze_within(model: nn.Module, frozen: set[str], patterns: list[str]) -> None:
    """Freeze adapters inside frozen modules. Raises RecipeError if nothing of the adapter is left to train."""
    left = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = name.split(".")
        if any(".".join(parts[:depth]) in frozen for depth in range(1, len(parts))):
            parameter.requires_grad_(False)
        elif "modules_to_save" not in parts:
            left = True
    if not left:
        raise RecipeError(
            f"train.freeze: {', '.join(patterns)} leaves nothing of the adapter to train; peft freezes the "
            "pretrained weights by itself: leave train.freeze out, or name other peft.target_modules"
        )


def _output(wrapper: Any, wanted: str | None) -> str:
    """Return "merged" or "adapter", the form of the saved model. Raises RecipeError if merging is not possible."""
    reason = _why_not_merged(wrapper)
    if reason is None:
        return wanted or "merged"
    if wanted == "merged":
        raise RecipeError(f"peft.output: merged: {reason}; use adapter")
    if wanted is None:
        log.info("peft.output: adapter (%s): model/ needs sft-hf, or PEFT and the pretrained model", reason)
    return "adapter"


def _why_not_merged(wrapper: Any) -> str | None:
    """Try to merge a copy of one layer of each kind, so that a failure is found before training."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if wrapper.peft_config["default"].is_prompt_learning:
        return "virtual tokens are not part of any weight"
    if is_quantized(wrapper.get_base_model()):
        return "the pretrained model is quantized, and merged weights would be rounded again"
    if tied := wrapper.base_model._get_tied_target_modules(wrapper.get_base_model()):
        return f"{tied[0]} shares its weight with another layer"
    tried = set()
    for layer in wrapper.modules():
        if not isinstance(layer, BaseTunerLayer) or (kind := (type(layer), type(layer.get_base_layer()))) in tried:
            continue
        tried.add(kind)
        try:
            copy.deepcopy(layer).merge(safe_merge=True)
        except (NotImplementedError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            return f"{type(layer).__name__} cannot be merged: {' '.join(str(error).split())[:100]}"
    return None


# --- prefix tuning -------------------------------------------------------------------------------------------------


def _cache_name(model: Any) -> str | None:
    """Return the model's argument for the keys and values of a prefix: `cache` since Transformers 5.23."""
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "_", model)
    parameters: Mapping[str, Any] = inspect.signature(backbone.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


def _hand_over_prefix(wrapper: Any) -> None:
    """Pass the prefix to the model by the argument name that this version of Transformers uses.

    PEFT 0.21 only knows `past_key_values`, and rejects every classifier of later versions.
    """
    name = _cache_name(wrapper.get_base_model())
    if name != "cache":
        return

    def forward(self: Any, input_ids: Any = None, inputs_embeds: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        given = input_ids if input_ids is not None else inputs_embeds
        kwargs |= {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "labels": labels}
        return self.base_model(cache=self.get_prompt(len(given)), **kwargs)

    wrapper._prefix_tuning_forward = types.MethodType(forward, wrapper)
