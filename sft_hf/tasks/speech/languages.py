"""Languages of recordings: their codes and names, and letter case by their rules."""

from __future__ import annotations

import re
import unicodedata

from sft_hf.core.errors import did_you_mean

DOTLESS = "\N{LATIN SMALL LETTER DOTLESS I}"
DOTTED_I = frozenset({"tr", "az"})
"""Languages in which I is the capital of dotless i, and İ that of i (Unicode, SpecialCasing.txt)."""

# Other names of Whisper's languages: ISO 639-3, other codes, native names. Suggested, but not accepted silently.
_OTHER_CODES = {
    **{
        "ara": "ar",
        "cmn": "zh",
        "zho": "zh",
        "deu": "de",
        "ger": "de",
        "eng": "en",
        "fas": "fa",
        "fra": "fr",
        "fre": "fr",
    },
    **{
        "hin": "hi",
        "ita": "it",
        "jpn": "ja",
        "kor": "ko",
        "nld": "nl",
        "pol": "pl",
        "por": "pt",
        "rus": "ru",
        "spa": "es",
    },
    **{"tur": "tr", "ukr": "uk", "vie": "vi", "fil": "tl", "iw": "he", "in": "id", "jv": "jw", "nb": "no", "cn": "zh"},
    **{"deutsch": "de", "français": "fr", "francais": "fr", "español": "es", "espanol": "es", "italiano": "it"},
    **{"português": "pt", "portugues": "pt", "nederlands": "nl", "polski": "pl", "türkçe": "tr", "svenska": "sv"},
    **{"русский": "ru", "українська": "uk", "中文": "zh", "日本語": "ja", "한국어": "ko", "हिन्दी": "hi"},
    **{"jp": "ja", "kr": "ko", "farsi": "fa", "norwegian bokmal": "no", "azeri": "az", "filipino": "tl"},
}


def language_code(language: str | None) -> str | None:
    """Return the code of a language given by code, by name or with a region: en for "English", "en", "en-US".

    None if none is given; for a language that Whisper does not support, the first subtag.
    """
    if not language or not language.strip():
        return None
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    word = language.strip().lower()
    base = _base(word)
    return str(TO_LANGUAGE_CODE.get(word) or TO_LANGUAGE_CODE.get(base) or _OTHER_CODES.get(base) or base)


def whisper_language(language: str) -> str | None:
    """Return the code of one of Whisper's languages, given by code or name; None for another language."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    word = language.strip().lower()
    return word if word in LANGUAGES else TO_LANGUAGE_CODE.get(word)


def language_hint(language: str) -> str:
    """Return a hint for a language that Whisper does not accept.

    >>> language_hint("zh-CN")
    'did you mean zh (chinese)?'
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    word = language.strip().lower()
    base = _base(word)
    code = next((known for name in (word, base) if (known := whisper_language(_OTHER_CODES.get(name, name)))), None)
    if code is not None:
        return f"did you mean {code} ({LANGUAGES[code]})?"
    return did_you_mean(word, list(TO_LANGUAGE_CODE) if len(word) > 3 else list(LANGUAGES))


def _base(word: str) -> str:
    return re.split(r"[-_ (]", word, maxsplit=1)[0]


def lower(text: str, code: str | None = None) -> str:
    """Return a text in lower case, by the rules of the language with this code."""
    if code in DOTTED_I:
        text = unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", DOTLESS)
    return text.lower()


def upper(text: str, code: str | None = None) -> str:
    """Return a text in upper case, by the rules of the language with this code."""
    if code in DOTTED_I:
        text = unicodedata.normalize("NFC", text).replace("i", "İ")
    return text.upper()


def change_case(text: str, case: str, code: str | None = None) -> str:
    """Return a text in a letter case: "lower", "upper", or "keep" (unchanged)."""
    if case == "lower":
        return lower(text, code)
    return upper(text, code) if case == "upper" else text
