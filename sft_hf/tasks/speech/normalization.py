"""Text normalization for error rates: case, punctuation, British spelling."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from sft_hf.tasks.speech.languages import lower

# Canonical combining classes of Hebrew (10 to 26), Arabic (27 to 35) and Syriac (36) points: words are usually
# written without them. Vowel signs and viramas of Indic, Thai, Lao, Tibetan and other scripts have other classes.
_OPTIONAL_POINTS = range(10, 37)


def normalizer(code: str | None, english: bool, spellings: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return Whisper's English normalizer, or `basic` for the language with this code.

    `spellings` is Whisper's table of British and American spellings, which comes with its models (normalizer.json);
    without it, spellings are not normalized. Source: A. Radford et al., Robust Speech Recognition via Large-Scale Weak
    Supervision, 2022, appendix C.
    """
    if not english:
        return lambda text: basic(text, code)
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(dict(spellings or {}))


def basic(text: str, code: str | None = None) -> str:
    """Return a text in lower case and Unicode NFKC, without punctuation, symbols and bracketed text.

    Like Whisper's BasicTextNormalizer, except for case (Turkish and Azerbaijani have a dotless i) and marks: Whisper's
    replaces every mark (Unicode category M) with a blank, so that Hindi, Tamil or Thai words lose their vowels and are
    split, and different words count as equal. Here marks are kept. Only Hebrew, Arabic and Syriac points are removed
    (without a blank), since most texts are written without them.

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
    """Return a text in Unicode's composed form (NFC), in which é is a single character."""
    return unicodedata.normalize("NFC", text)
