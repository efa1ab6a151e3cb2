"""Packages that only some commands need, and the extra of this package that installs them."""

from __future__ import annotations

TRAINING = frozenset(
    "accelerate datasets evaluate huggingface_hub jinja2 psutil safetensors sklearn scipy torch transformers".split()
)
"""Import names of the packages that the extra `train` installs."""


def how_to_install(error: ImportError) -> str | None:
    """Return how to install a package that an import did not find; None if none of our extras installs it.

    >>> how_to_install(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "torch is required but not installed: pip install 'sft-hf[train]'"
    """
    package = (error.name or "").partition(".")[0]
    return f"{package} is required but not installed: pip install 'sft-hf[train]'" if package in TRAINING else None
