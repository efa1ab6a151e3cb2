"""The command that installs this package, for the readers of a model card.

There is no package of this name on the index, and a repository may not be public, so nothing is assumed: the command
is in `SFT_HF_INSTALL`, or refers to the repository in the metadata of the installed package.
"""

from __future__ import annotations

import os
from importlib import metadata

from sft_hf.core.redaction import redact

VARIABLE = "SFT_HF_INSTALL"
_LABELS = ("repository", "source", "source code", "homepage")  # labels of Project-URL, in lower case


def install_line() -> str:
    """Return the command, or one line on how to install without it; never contains a token."""
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
