"""Making transcripts comparable that differ only in how they are written: case, punctuation, British spelling."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from sft_hf.tasks.speech.languages import lower

# Canonical combining classes of the points of Hebrew (10 to 26), Arabic (27 to 35) and Syriac (36): words are usually
# written without them. Vowel signs and viramas of Indic, Thai, Lao, Tibetan and other scripts have other classes.
_OPTIONAL_POINTS = range(10, 37)


def normalizer(code: str | None, english: bool, spellings: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return Whisper's English normalizer, or `basic` for the language with this code.

    `spellings` is Whisper's table of British and American spellings, which comes with its own checkpoints
    (normalizer.json); without it, spellings count as they are written. Source: A. Radford et al., Robust Speech
    Recognition via Large-Scale Weak Supervision, 2022, appendix C.
    """
    if not english:
        return lambda text: basic(text, code)
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(dict(spellings or {}))


def basic(text: str, code: str | None = None) -> str:
    """Return a text without case, punctuation, symbols, and what is in brackets; in Unicode's NFKC.

    Like Whisper's BasicTextNormalizer, except for case (Turkish and Azerbaijani have a dotless i) and marks: that one
    replaces every mark (Unicode category M) with a blank, so that Hindi, Tamil or Thai words lose their vowels and fall
    apart, and two different words count as equal. Here marks are part of their word. Only the points of Hebrew, Arabic
    and Syriac are left out, without a blank, since most texts are written without them.

    >>> basic("पानी, PĀNĪ (water)!")
    'पानी pānī'
    """
    text = lower(unicodedata.normalize("NFC", text), code)
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)
    text = re.sub(r"\(([^)]+?)\)", "", text)
    text = "".join(map(_plain, unicodedata.normalize("NFKC", text)))
    return " ".join(unicodedata.normalize("NFC", lower(text, code)).split())


def _plain(character: str) -> str:
    kind = unicodedata.category(character)[0]
    if kind in "SP":
        return " "
    if kind == "M" and unicodedata.combining(character) in _OPTIONAL_POINTS:
        return ""
    return character


def nfc(text: str) -> str:
    """Return a text in Unicode's composed form: é is one character, however a keyboard or system wrote it."""
    return unicodedata.normalize("NFC", text)
