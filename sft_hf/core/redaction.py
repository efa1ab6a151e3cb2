"""Removal of secrets from output; tokens come from the environment or the Hub login."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
MIN_LENGTH = 8  # characters; a shorter value would match harmless text

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|API_?KEY|SECRET|SECRET_KEY|ACCESS_KEY|PRIVATE_KEY|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE
)
_URL_CREDENTIALS = re.compile(r"://([^/\s@:]*):?([^/\s]*)@")
_HUB_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")


def redact(text: str) -> str:
    """Return a text with known secrets, and strings that look like secrets, replaced by `***`.

    Known secrets are the values of environment variables named like secrets (HF_TOKEN, WANDB_API_KEY, ...), passwords
    in URLs in environment variables (PIP_INDEX_URL), and the token of the Hub login.
    """
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _HUB_TOKEN.sub(HIDDEN, _URL_CREDENTIALS.sub(f"://{HIDDEN}@", text))


def _secrets() -> set[str]:
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            found.add(value.strip())
        for user, password in _URL_CREDENTIALS.findall(value):
            secret = password or user
            found |= {secret, unquote(secret)}
    found.add(_hub_login())
    return {secret for secret in found if len(secret) >= MIN_LENGTH}


def _hub_login() -> str:
    """Return the token that `hf auth login` stored; importing huggingface_hub to find it would take a second."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    path = Path(os.path.expandvars(os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))))
    try:
        return path.read_text(encoding="utf-8").strip() if path.stat().st_size < 10_000 else ""
    except (OSError, UnicodeDecodeError):
        return ""


def print_traceback() -> None:
    """Print the exception being handled, without secrets."""
    sys.stderr.write(redact(traceback.format_exc()))


def guard_tracebacks() -> None:
    """Install a hook that removes secrets from tracebacks of uncaught exceptions."""

    def hook(kind: Any, error: Any, trace: Any) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = hook
    threading.excepthook = lambda arguments: hook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
