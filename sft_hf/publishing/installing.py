"""The command that installs this package, for the readers of a model card.

No package of this name is on the index, and a repository may have no public address: nothing is promised that nobody
said. `SFT_HF_INSTALL` holds the command, else the installed package's own metadata name a repository.
"""

from __future__ import annotations

import os
from importlib import metadata

from sft_hf.core.redaction import redact

VARIABLE = "SFT_HF_INSTALL"
_LABELS = ("repository", "source", "source code", "homepage")  # of Project-URL, in lower case


def install_line() -> str:
    """Return the command, or in one line what is needed where it is not known; never a token."""
    command = " ".join(os.environ.get(VARIABLE, "").split())
    if not command and (address := _repository()):
        command = f'pip install "sft-hf @ git+{address}"'
    return redact(command) or "needs the package sft-hf, from a copy of its repository: pip install PATH_TO_IT"


def _repository() -> str | None:
    try:
        urls = metadata.metadata("sft-hf").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    named = {label.strip().lower(): url.strip() for label, _, url in (str(entry).partition(",") for entry in urls)}
    return next((named[label] for label in _LABELS if named.get(label, "").startswith("https://")), None)
