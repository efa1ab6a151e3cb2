"""Validation of a recipe's `peft` section: the fields of PEFT's config classes, and `output`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from sft_hf.core.errors import RecipeError, UserError, did_you_mean

OUTPUTS = ("merged", "adapter")

DEFAULT_KEYS = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
"""Fields on the origin of an adapter, which the run fills in."""

CLOSED_KEYS = ("megatron_config", "megatron_core", "runtime_config", "layer_replication")
"""Fields that import modules by name, or change the architecture of the model."""

REFUSED = {
    "ADALORA": "moves ranks between layers while it trains, which the loop does not do; use LORA",
    "XLORA": "mixes adapters that are trained already; use LORA",
    "POLY": "requires a task id for every row; use LORA",
    "MULTITASK_PROMPT_TUNING": "requires a task id for every row; use PROMPT_TUNING",
    "ADAPTION_PROMPT": "supports only generative language models; use LORA",
    "CPT": "supports only generative language models; use PROMPT_TUNING",
    "CARTRIDGE": "supports only generative language models; use PREFIX_TUNING",
    "SHADOW": "supports only generative language models; use LORA",
}
"""Methods that the training loop or the tasks do not support, and the reason."""

INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Initializations of LoRA that need no data and do not change the pretrained weights."""


def check_adapter(section: Mapping[str, Any]) -> None:
    """Check what can be checked in a `peft` section without a model. Raises RecipeError, UserError without PEFT."""
    if section:
        output_of(section)
        adapter_config(section, None)


def output_of(section: Mapping[str, Any]) -> str | None:
    """Return `output` of the section, None if it is not set. Raises RecipeError for an invalid value."""
    output = section.get("output")
    if output is not None and output not in OUTPUTS:
        raise RecipeError(f"peft.output: {output!r}; {did_you_mean(str(output), OUTPUTS)}")
    return output


def adapter_config(section: Mapping[str, Any], task_type: str | None) -> Any:
    """Return the section as PEFT's config. Raises RecipeError naming the key, UserError if PEFT is not installed.

    Args:
        section: not empty.
        task_type: PEFT's name of the task, used if the section has none.
    """
    cls = _config_class(section)
    values = {key: value for key, value in section.items() if key not in ("output", "peft_type")}
    known = [field.name for field in fields(cls) if field.init and field.name not in (*DEFAULT_KEYS, *CLOSED_KEYS)]
    known.remove("peft_type")
    for key in values:
        if key in DEFAULT_KEYS:
            raise RecipeError(f"peft.{key}: is filled in by the run; leave it out")
        if key in CLOSED_KEYS:
            raise RecipeError(f"peft.{key}: is not supported; leave it out")
        if key not in known:
            raise RecipeError(
                f"peft.{key}: {cls.__name__} has no such field; {did_you_mean(key, [*known, 'output'], 40)}"
            )
    values = {key: _checked(cls, key, value) for key, value in values.items() if value is not None}
    if values.get("init_lora_weights", True) not in INITIALISATIONS:
        raise RecipeError(
            f"peft.init_lora_weights: {values['init_lora_weights']!r} needs data or changes the pretrained weights, so "
            "that the adapter would not fit other copies of the model; valid: true, false, gaussian, orthogonal"
        )
    try:
        return cls(**{"task_type": task_type, **values})
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise RecipeError(f"peft: {cls.__name__}: {' '.join(str(error).split())[:300]}") from None


def _config_class(section: Mapping[str, Any]) -> type[Any]:
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise UserError(f"the peft section needs {error.name}: pip install 'sft-hf[peft]'") from None
    known = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(section["peft_type"])
    if name.upper() in REFUSED:
        raise RecipeError(f"peft.peft_type: {name} {REFUSED[name.upper()]}")
    if name not in known:
        raise RecipeError(
            f"peft.peft_type: no method {name!r}; {did_you_mean(name.upper(), sorted(known.keys() - REFUSED), 50)}"
        )
    return known[name]


def _checked(cls: type[Any], key: str, value: Any) -> Any:
    """Return a value of the field's declared type; with another type, PEFT would fail later."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(typing.get_type_hints(cls)[key])
    except (NameError, TypeError, PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value  # a declaration that only type checkers understand
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise RecipeError(f"peft.{key}: {message[:1].lower()}{message[1:]}, not {value!r:.80}") from None
