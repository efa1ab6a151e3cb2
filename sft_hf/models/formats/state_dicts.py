"""Loading a plain state dict (a file of named tensors, without a config) into a Transformers model.

The recipe gives the architecture: a timm model, or a Transformers model type. Tensors are matched by name and shape.
Names of EfficientNet-PyTorch are converted; names of other libraries can be converted by `model.key_mapping`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sft_hf.core.errors import CheckpointError, RecipeError, StorageError, did_you_mean, first_few
from sft_hf.core.filesystem import STORAGE_ERRNOS
from sft_hf.models.freezing import note_new_weights
from sft_hf.models.loading import apply_overrides, quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "state_dict_ema", "model_ema")
_AROUND_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_PLAIN_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE}
_EXPANDED_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    **_SQUEEZE,
}
_PREFIXES = ("module.", "_orig_mod.", "timm_model.", "model.", "net.")
_TIMM_FIELDS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
MAX_MADE_UP = 0.1
"""The fraction of a backbone's tensors that may be missing."""


def is_state_dict(source: Source) -> bool:
    """Whether the source is a single file, and not a folder that `from_pretrained` opens."""
    return source.path is not None and source.path.is_file()


def build_config(source: Source, architecture: str | None) -> PretrainedConfig:
    """Return the config of a state dict's architecture, with the defaults of its library.

    Raises CheckpointError if there is no architecture, RecipeError for an unknown one.
    """
    from transformers import CONFIG_MAPPING, TimmWrapperConfig

    if not architecture:
        raise CheckpointError(
            f"{source.name}: a state dict does not contain its architecture; set model.architecture: "
            "a timm model (resnet18, tf_efficientnet_lite0, ...) or a Transformers model type (vit, resnet, ...)"
        )
    if pretrained_cfg := timm_preprocessing(architecture):
        return TimmWrapperConfig(architecture=architecture, pretrained_cfg=pretrained_cfg)  # type: ignore[call-arg]
    if architecture in CONFIG_MAPPING:
        return CONFIG_MAPPING[architecture]()
    names = _timm_names()
    near = did_you_mean(architecture, [*names, *CONFIG_MAPPING.keys()], limit=0)
    hint = near.split(" Valid:")[0] if "?" in near else "timm.list_models() lists what timm knows"
    hint = hint if names else "and timm is not installed (pip install timm)"
    raise RecipeError(f"model.architecture: neither timm nor Transformers knows {architecture!r}; {hint}")


def timm_preprocessing(architecture: str) -> dict[str, Any] | None:
    """Return timm's preprocessing of an architecture (size, mean, std, ...); None if timm does not know it."""
    try:
        import timm
    except ImportError:
        return None
    if not timm.is_model(architecture):
        return None
    found = timm.get_pretrained_cfg(architecture)
    data = found.to_dict() if found else {}
    return {"architecture": architecture, **{key: data[key] for key in _TIMM_FIELDS if data.get(key) is not None}}


def load_from_state_dict(
    auto_class: Any,
    config: PretrainedConfig,
    source: Source,
    section: ModelSection,
    head: dict[str, Any],
) -> PreTrainedModel:
    """Build a model and load the tensors of a state dict into it; a head that does not fit is newly initialized.

    The arguments are those of `sft_hf.models.loading.load_pretrained`, with `config` from `build_config`.
    Raises CheckpointError for a file that cannot be read or does not fit, RecipeError for an invalid override.
    """
    assert source.path is not None
    apply_overrides(config, section, head)
    tensors = rename(read_state_dict(source.path), section.key_mapping)
    try:
        with quiet_transformers():
            model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError, ImportError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"model.architecture: {section.architecture} cannot be built: {reason}") from error
    inner = getattr(model, "timm_model", model)
    target = inner.state_dict()
    head_names = _head_names(model)
    tensors = timm_efficientnet_names(tensors, target)
    chosen = match(tensors, target, prefix=f"{model.base_model_prefix}.")
    missing = [name for name in target if name not in chosen and not name.endswith("num_batches_tracked")]
    backbone = [name for name in target if name not in head_names and not name.endswith("num_batches_tracked")]
    made_up = [name for name in missing if name not in head_names]
    if len(made_up) > MAX_MADE_UP * len(backbone):
        raise CheckpointError(_misfit(source, section.architecture, tensors, target, made_up, len(backbone)))
    with torch.no_grad():
        for name, theirs in chosen.items():
            target[name].copy_(tensors[theirs])
    log.info("%s: has %d of the model's %d weights", source.path.name, len(chosen), len(target))
    if missing:
        log.info("randomly initialized weights: %s", ", ".join(missing))
    note_new_weights(model, [f"timm_model.{name}" if inner is not model else name for name in missing])
    if unused := [name for name in tensors if name not in set(chosen.values())]:
        log.info("not used from %s: %s", source.path.name, first_few(unused, 8))
    return model


def match(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str = "") -> dict[str, str]:
    """Return {name in `target`: name in `tensors`} where names and shapes agree.

    Args:
        tensors: the state dict.
        target: the model's.
        prefix: a prefix that the names of one side may have ("vit.").
    """
    found: dict[str, str] = {}
    for name, tensor in target.items():
        for theirs in (name, name.removeprefix(prefix), prefix + name):
            if theirs in tensors and tensors[theirs].shape == tensor.shape:
                found[name] = theirs
                break
    return found


def timm_efficientnet_names(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an EfficientNet of the EfficientNet-PyTorch library by timm's names; others unchanged.

    That library (github.com/lukemelas/EfficientNet-PyTorch, efficientnet_pytorch/model.py) numbers all blocks
    consecutively, while timm has stages. A block without an expansion has two normalizations, others three.

    Args:
        tensors: a state dict of any library.
        target: the state dict of the timm model.
    """
    if "_conv_stem.weight" not in tensors or "conv_stem.weight" not in target:
        return dict(tensors)
    blocks = list(dict.fromkeys(found[0] for name in target if (found := re.match(r"blocks\.\d+\.\d+\.", name))))
    expanded = {found[1] for name in tensors if (found := re.match(r"_blocks\.(\d+)\._expand_conv\.", name))}

    def ours(name: str) -> str:
        block, rest, parts = "", name, _AROUND_BLOCKS
        if inner := re.match(r"_blocks\.(\d+)\.", name):
            if int(inner[1]) >= len(blocks):
                return name
            block, rest = blocks[int(inner[1])], name[inner.end() :]
            parts = _EXPANDED_BLOCK if inner[1] in expanded else _PLAIN_BLOCK
        part, _, kind = rest.rpartition(".")
        return f"{block}{parts[part]}.{kind}" if part in parts else name

    return {ours(name): value for name, value in tensors.items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name, unwrapped ({"state_dict": ...}) and without a common prefix (`module.`).

    Nothing in the file is executed. Raises CheckpointError for a pickled module, for anything other than named tensors,
    and for a corrupt file; StorageError if the disk fails.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        _refuse(error, path)
    for _ in range(3):
        wrapper = next((key for key in _WRAPPERS if isinstance(held, dict) and isinstance(held.get(key), dict)), None)
        if wrapper is None:
            break
        held = held[wrapper]
    items = held.items() if isinstance(held, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: contains {_kind(held)} instead of named tensors; save model.state_dict()")
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def rename(tensors: Mapping[str, Tensor], key_mapping: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors with `model.key_mapping` applied to their names. Raises RecipeError."""
    renamed = {}
    for name, value in tensors.items():
        new = name
        for pattern, replacement in key_mapping.items():
            try:
                new = re.sub(pattern, replacement, new)
            except (re.error, IndexError) as error:
                raise RecipeError(f"model.key_mapping: {pattern!r}: {replacement!r}: {error}") from None
        if new in renamed:
            raise RecipeError(f"model.key_mapping: gives two weights the name {new!r}")
        renamed[new] = value
    return renamed


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def _head_names(model: PreTrainedModel) -> list[str]:
    """Return the names in the state dict that depend on the number of classes."""
    inner: nn.Module | None = getattr(model, "timm_model", None)
    if inner is None:
        own = getattr(model, model.base_model_prefix, None)
        prefix = f"{model.base_model_prefix}."
        return [name for name in model.state_dict() if own is not None and not name.startswith(prefix)]
    get_classifier: Any = getattr(inner, "get_classifier", None)
    found = get_classifier() if get_classifier else None
    heads = [head for head in (found if isinstance(found, (list, tuple)) else [found]) if isinstance(head, nn.Module)]
    names = [name for name, module in inner.named_modules() if any(module is head for head in heads)]
    return [key for key in inner.state_dict() if any(key.startswith(f"{name}.") for name in names)]


def _refuse(error: Exception, path: Path) -> NoReturn:
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    text = " ".join(str(error).split())
    if "weights_only" in text.lower() or "weights only" in text.lower():
        what = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?(?: GLOBAL)?) ([\w.]+)", text)
        held = f" ({what[1]})" if what else ""
        raise CheckpointError(
            f"{path}: is not a plain state dict but pickled objects{held}, and opening those would run code from the "
            "file; where it was made, save the tensors alone: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    kind = "safetensors file" if isinstance(error, SafetensorError) or path.suffix == ".safetensors" else "PyTorch file"
    raise CheckpointError(f"{path}: is damaged, or not a {kind}: {text[:200] or type(error).__name__}") from error


def _misfit(
    source: Source,
    architecture: str | None,
    tensors: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    made_up: Sequence[str],
    total: int,
) -> str:
    wanted = first_few([f"{name} {list(target[name].shape)}" for name in made_up], 3)
    unused = [f"{name} {list(value.shape)}" for name, value in tensors.items() if name not in target]
    extra = f"; unmatched in the file: {first_few(unused, 3)}" if unused else ""
    return (
        f"{source.name}: {len(made_up)} of {total} tensors of {architecture} are not in it under that name and shape "
        f"({wanted}){extra}; check model.architecture, or rename the file's tensors by model.key_mapping"
    )


def _kind(held: Any) -> str:
    if isinstance(held, dict):
        return f"a dict with the keys {first_few([str(key) for key in held], 5)}" if held else "an empty dict"
    return f"a {type(held).__name__}"
