"""Images of another size or in grey: adapting the processor and the pretrained weights to `model.config_overrides`."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from sft_hf.core.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger("sft_hf")

FIELDS = frozenset({"image_size", "num_channels"})
"""Config fields that describe the images a model takes."""

_POSITIONS = ("position_embeddings", "position_embedding.weight", "pos_embed")


def field(config: PretrainedConfig, name: str, default: Any = None) -> Any:
    """Return a field of a config, or of its `vision_config`."""
    inner = getattr(config, "vision_config", None)
    return getattr(config, name, getattr(inner, name, default))


def input_channels(config: PretrainedConfig, overrides: Mapping[str, Any], name: str) -> int:
    """Return the number of image channels of a model, 1 or 3. Raises CheckpointError for another number."""
    timm = (getattr(config, "model_args", None) or {}).get("in_chans")
    channels = overrides.get("num_channels", timm or field(config, "num_channels", 3))
    if channels not in (1, 3):
        raise CheckpointError(
            f"{name}: takes images with {channels} channels; supported are 3 (RGB) and 1 (grey), by "
            "model.config_overrides: {num_channels: 3} where its weights allow it"
        )
    return int(channels)


def grey(processor: Any) -> None:
    """Adapt a processor to images of one channel, with the mean over RGB of its mean and standard deviation."""
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if isinstance(values, (list, tuple)) and len(values) > 1:
            setattr(processor, name, [sum(values) / len(values)])
    if getattr(processor, "do_convert_rgb", None):
        processor.do_convert_rgb = False


def grey_preprocessing(timm: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's preprocessing for images of one channel, changed like a processor by `grey`."""
    changed = dict(timm)
    for name in ("mean", "std"):
        if values := changed.get(name):
            changed[name] = [sum(values) / len(values)]
    if size := changed.get("input_size"):
        changed["input_size"] = [1, *size[1:]]
    return changed


def resize(processor: Any, size: Any) -> None:
    """Set a processor's size to `model.config_overrides.image_size`. Raises RecipeError for an invalid size."""
    key = "model.config_overrides.image_size"
    if not hasattr(processor, "size"):
        raise RecipeError(f"{key}: {type(processor).__name__} has a fixed size; remove it")
    height, width = _sides(size, key)
    old, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    old = {key: value for key, value in old.items() if value is not None}
    if "shortest_edge" in old:
        short = min(height, width)
        before = min((value for value in crop.values() if value), default=None)
        cropped = before and getattr(processor, "do_center_crop", False)
        processor.size = {"shortest_edge": round(old["shortest_edge"] * short / before) if cropped else short}
    else:
        processor.size = {"height": height, "width": width}
    if crop:
        processor.crop_size = {"height": height, "width": width}
    log.info("images are resized to %d x %d (model.config_overrides)", height, width)


def _sides(size: Any, key: str) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= 10_000 for side in sides):
        raise RecipeError(f"{key}: {size!r} is not a number of pixels, or [height, width]")
    return sides


def before_overrides(config: PretrainedConfig, overrides: Mapping[str, Any]) -> PretrainedConfig | None:
    """Return a copy of a config if the overrides change its image size or channels, else None."""
    return copy.deepcopy(config) if FIELDS & set(overrides) else None


def adapt(
    model: PreTrainedModel,
    mismatched: Iterable[str],
    old: PretrainedConfig,
    original: Callable[[], PreTrainedModel],
    name: str,
) -> set[str]:
    """Adapt pretrained weights that depend on the size or channels of images to another size or number of channels.

    Position embeddings are interpolated (bicubic); filters of the first layer are summed over the colours, or repeated.

    Args:
        model: with new weights for `mismatched`; those that can be adapted are replaced.
        mismatched: names of the weights whose shapes differ.
        old: the config of the pretrained model.
        original: loads the pretrained model without changes.
        name: of the pretrained model, for messages.

    Returns the names that were adapted. Raises CheckpointError for a weight below the head that cannot be adapted.
    """
    inside = [key for key in mismatched if key.startswith(f"{model.base_model_prefix}.")]
    if not inside:
        return set()
    theirs, ours = original().state_dict(), model.state_dict()
    for key in inside:
        adapted = _adapted(key, theirs[key], ours[key], old, model.config)
        if adapted is None:
            raise CheckpointError(
                f"{name}: {key} depends on the size or channels of its pictures and cannot be adapted from "
                f"{list(theirs[key].shape)} to {list(ours[key].shape)}; remove image_size and num_channels from "
                "model.config_overrides"
            )
        with torch.no_grad():
            ours[key].copy_(adapted)
        log.info("%s: adapted from %s to %s", key, list(theirs[key].shape), list(ours[key].shape))
    return set(inside)


def _adapted(key: str, theirs: Tensor, ours: Tensor, old: PretrainedConfig, new: PretrainedConfig) -> Tensor | None:
    if key.endswith(_POSITIONS):
        return _resized_positions(theirs, ours, old, new)
    if theirs.ndim == 4 and theirs.shape[0] == ours.shape[0] and theirs.shape[2:] == ours.shape[2:]:
        if ours.shape[1] == 1:
            return theirs.sum(dim=1, keepdim=True)
        if theirs.shape[1] == 1:
            return theirs.repeat(1, ours.shape[1], 1, 1) / ours.shape[1]
    return None


def _resized_positions(theirs: Tensor, ours: Tensor, old: PretrainedConfig, new: PretrainedConfig) -> Tensor | None:
    """Return [..., extra + rows x columns, features] for another number of patches; the extra tokens come first."""
    before, after = _grid(old), _grid(new)
    if not math.prod(after):
        sides = field(new, "image_size"), field(new, "patch_size")
        raise RecipeError("model.config_overrides.image_size: {} is smaller than a patch ({})".format(*sides))
    extra = theirs.shape[-2] - math.prod(before)
    if extra < 0 or ours.shape[-2] != extra + math.prod(after) or theirs.shape[-1] != ours.shape[-1]:
        return None
    flat = theirs.reshape(theirs.shape[-2], -1)
    grid = flat[extra:].reshape(1, *before, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=after, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([flat[:extra], resized.permute(0, 2, 3, 1).reshape(math.prod(after), -1)]).reshape(ours.shape)


def _grid(config: PretrainedConfig) -> tuple[int, int]:
    height, width = _sides(field(config, "image_size"), "config.json: image_size")
    patch = field(config, "patch_size", 1)
    down, right = (patch, patch) if isinstance(patch, int) else tuple(patch)
    return height // down, width // right


def check_fit(model: PreTrainedModel, channels: int, size: tuple[int, int], name: str) -> None:
    """Raise CheckpointError if the image sizes of model and processor differ and the model cannot take the images."""
    wanted = field(model.config, "image_size")
    if not isinstance(wanted, (int, list, tuple)) or (wanted, wanted) == size or tuple(size) == wanted:
        return
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(pixel_values=torch.zeros(1, channels, *size, device=model.device))
    except Exception as error:  # models raise different exceptions
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{name}: its image processor gives {size[0]} x {size[1]} pixels, and the model does not take them "
            f"({reason}); set model.config_overrides: {{image_size: ...}}, and the processor follows"
        ) from error
    finally:
        model.train(was_training)
