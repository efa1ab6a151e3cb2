"""Self-contained HTML pages: templates, and escaping of text."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sft_hf.publishing.numbers import UNKNOWN

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""The Content-Security-Policy of every page: nothing is loaded, and no script runs."""

LONGEST_WORDING = 160  # characters of a label or name on a page

_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")  # embeddings, overrides and isolates


def render(template: str, **values: Any) -> str:
    """Render a template of `templates/`. Everything that is not Markup is escaped."""
    return _environment().get_template(template).render(policy=POLICY, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sft_hf.publishing.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["wording"] = wording
    return environment


def _finalize(value: Any) -> Any:
    if value is None:
        return UNKNOWN
    return legible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def legible(text: str) -> str:
    """Return text that browsers can show and UTF-8 can encode: control characters and lone surrogates are replaced."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs") else "\ufffd"
        for character in text
    )


def wording(value: Any, limit: int = LONGEST_WORDING) -> str:
    """Return a label, word or name on one line of at most `limit` characters; an empty one as (empty).

    Characters that change the text direction are removed, as they would affect the rest of the sentence.

    >>> wording(["a", "b"])
    'a, b'
    """
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(part) for part in value) or "(none)"
    line = " ".join(_DIRECTIONS.sub("", str(value)).split()) or "(empty)"
    return line if len(line) <= limit else line[: limit - 1] + "…"
