"""A trained adapter, merged into the model or separate, in PEFT's file format.

    adapter/adapter_config.json          the section, the values chosen for it, and the name of the pretrained model
    adapter/adapter_model.safetensors    the weights of the adapter and of the head
    adapter/README.md                    how to load it

`model/` contains the merged model. If merging is not possible, or with `output: adapter`, it contains the same two
files and the config and tokenizer, without the pretrained weights.
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
    """An adapter in a model. Saved in place of the model if that is saved without its weights."""

    wrapper: Any
    """PEFT's wrapper; its base model is the original model with layers replaced."""

    output: str
    """Contents of model/: "merged" or "adapter"."""

    names: frozenset[str]
    """Names of the model's weights before the adapter was inserted."""

    converted: bool = False
    """Whether the pretrained model was converted from another format, see `sft_hf.models.formats`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.wrapper.get_base_model().config

    def facts(self) -> dict[str, Any]:
        """Return the entry of metrics.json: the method, the contents of model/, and the pretrained model's class."""
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
        """Store the adapter's weights, and return the model to score and save, merged if `output` is "merged"."""
        self.tensors = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in adapter_tensors(self.wrapper).items()
        }
        return self._merged() if self.output == "merged" else model

    def _merged(self) -> Any:
        from peft.utils.other import ModulesToSaveWrapper

        model = self.wrapper.merge_and_unload()
        for name, module in list(model.named_modules()):  # PEFT 0.21 does not remove them after LN_TUNING
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.modules_to_save["default"])
        if model.state_dict().keys() != self.names:
            kind = self.wrapper.peft_config["default"].peft_type.value
            raise TrainingError(
                f"peft.output: merged: PEFT does not remove {kind} from the model completely; use adapter"
            )
        return model

    def save(self, folder: Path, *, name_base: bool = True) -> None:
        """Write the adapter in PEFT's format to a folder; `name_base`: include the name of the pretrained model."""
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
        """Write the adapter, the model's config and its generation config, like `PreTrainedModel.save_pretrained`."""
        base = self.wrapper.get_base_model()
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
        if getattr(base, "generation_config", None) is not None and base.can_generate():
            base.generation_config.save_pretrained(folder)
        # A local path would be refused when the folder is opened, and is useless on other machines; the recipe has it.
        hub = self.wrapper.peft_config["default"].revision is not None
        self.save(folder, name_base=hub)


def is_own(base: Any) -> bool:
    """Whether the model's class is from this package; Transformers would load the pretrained model with another one."""
    return type(base).__module__.startswith("sft_hf.")


def _full_names(wrapper: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return the adapted modules by their full names, so that PEFT rejects a class of Transformers without them.

    Given only the ends of names, it would insert the adapter, find none of its weights, and use random ones.
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
    """Return the argument of `Task.save`: the model, or the adapter in place of the model."""
    return adapter if adapter is not None and adapter.output == "adapter" else model


def adapter_tensors(wrapper: Any) -> dict[str, Tensor]:
    """Return the adapter's weights by their names in the adapter's file."""
    from peft import get_peft_model_state_dict

    # False: PEFT would ask the Hub whether the vocabulary was resized, which it never is.
    tensors: dict[str, Tensor] = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    return tensors
