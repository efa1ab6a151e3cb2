"""A trained adapter: merged into the model or next to it, written as PEFT reads it.

    adapter/adapter_config.json          the section, what was chosen for it, and the checkpoint that it belongs to
    adapter/adapter_model.safetensors    its weights, and those of the head
    adapter/README.md                    how it is opened

`model/` holds the merged model. Where it cannot be merged, or `output: adapter` says so, it holds the same two files
next to config and tokenizer, without the pretrained weights: it cannot be opened without the adapter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sft_hf.core.errors import TrainingError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class Adapter:
    """An adapter in a model. Stands in for the model where that is saved without its weights."""

    wrapper: Any
    """PEFT's own view of the model; its base model is what was there before, with layers replaced."""

    output: str
    """merged, or adapter."""

    names: frozenset[str]
    """Of the model's weights, before the adapter."""

    converted: bool = False
    """Whether the checkpoint is in another format than Transformers': see `sft_hf.models.formats`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.wrapper.get_base_model().config

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of it: the method, what model/ holds, and the class that opens the checkpoint."""
        base = self.wrapper.get_base_model()
        kind, size = type(base).__name__, {}
        if kind.endswith("ForCTC"):
            size = {"vocab_size": base.config.vocab_size}
        elif kind.endswith("Classification"):
            size = {"num_labels": base.config.num_labels}
        own = {}
        if is_own(base):
            own = {"module": type(base).__module__}
            size["pooling"] = base.config.pooling
        return {
            "peft_type": self.wrapper.peft_config["default"].peft_type.value,
            "output": self.output,
            "architecture": kind,
            "head": {**size, "ignore_mismatched_sizes": True} if size else {},
            **own,
            **({"converted": True} if self.converted else {}),
        }

    def finish(self, model: Any) -> Any:
        """Keep the adapter's weights, and return the model that is scored and saved: merged, if it is to be."""
        self.tensors = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in adapter_tensors(self.wrapper).items()
        }
        return self._merged() if self.output == "merged" else model

    def _merged(self) -> Any:
        from peft.utils.other import ModulesToSaveWrapper

        model = self.wrapper.merge_and_unload()
        for name, module in list(model.named_modules()):  # PEFT 0.21 leaves them in after LN_TUNING
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.modules_to_save["default"])
        if model.state_dict().keys() != self.names:
            kind = self.wrapper.peft_config["default"].peft_type.value
            raise TrainingError(f"peft.output: merged: PEFT does not take {kind} out of the model whole; use adapter")
        return model

    def save(self, folder: Path, *, name_base: bool = True) -> None:
        """Write what plain PEFT reads into a folder; `name_base`: with the place that the checkpoint is from."""
        config = self.wrapper.peft_config["default"]
        data = {**config.to_dict(), "inference_mode": True}
        if not name_base:
            data["base_model_name_or_path"] = None
        if is_own(self.wrapper.get_base_model()):
            data |= _full_names(self.wrapper, data)
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in data.items()}
        (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(self.tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def save_pretrained(self, folder: Path) -> None:
        """Write the adapter, the model's config and how it generates, as a model would write itself."""
        base = self.wrapper.get_base_model()
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
        if getattr(base, "generation_config", None) is not None and base.can_generate():
            base.generation_config.save_pretrained(folder)
        # A local path would be refused when the folder is opened, and says nothing elsewhere: the recipe has it.
        hub = self.wrapper.peft_config["default"].revision is not None
        self.save(folder, name_base=hub)


def is_own(base: Any) -> bool:
    """Whether a model's class is of this package: Transformers would open the checkpoint with another one."""
    return type(base).__module__.startswith("sft_hf.")


def _full_names(wrapper: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The adapted modules by their full names, which a class of Transformers does not have: PEFT refuses that one.

    By the ends of names it would put the adapter in, find none of its weights, and answer with random ones.
    """
    names = sorted(getattr(wrapper.base_model, "targeted_module_names", []))
    if not names or not data.get("target_modules"):
        return {}
    found: dict[str, Any] = {"target_modules": names}
    if inner := data.get("feedforward_modules"):  # of IA3
        ends = tuple(f".{name}" for name in ([inner] if isinstance(inner, str) else inner))
        found["feedforward_modules"] = [name for name in names if f".{name}".endswith(ends)]
    return found


def savable(model: Any, adapter: Adapter | None) -> Any:
    """Return what `Task.save` is to save: the model, or the adapter in its stead."""
    return adapter if adapter is not None and adapter.output == "adapter" else model


def adapter_tensors(wrapper: Any) -> dict[str, Tensor]:
    """Return the adapter's weights by the names that they have in its file."""
    from peft import get_peft_model_state_dict

    # False: PEFT would ask the Hub whether the vocabulary was resized, which it never is.
    tensors: dict[str, Tensor] = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    return tensors
