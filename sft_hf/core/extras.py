"""Packages that only a part of the commands need, and the extra of this package that installs them."""

from __future__ import annotations

TRAINING = frozenset(
    "accelerate datasets evaluate huggingface_hub jinja2 psutil safetensors sklearn scipy torch transformers".split()
)
"""What the extra `train` installs, by the names under which it is imported."""


def how_to_install(error: ImportError) -> str | None:
    """Return which extra installs the package that an import did not find; None where that is another package.

    >>> how_to_install(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "torch is not installed, which this needs: pip install 'sft-hf[train]'"
    """
    package = (error.name or "").partition(".")[0]
    return f"{package} is not installed, which this needs: pip install 'sft-hf[train]'" if package in TRAINING else None
