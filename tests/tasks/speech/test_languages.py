"""Letter case and normalization by language."""

from __future__ import annotations

import unicodedata

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from sft_hf.tasks.speech.languages import change_case, language_code, language_hint
from sft_hf.tasks.speech.normalization import basic


@pytest.mark.parametrize(
    ("text", "code", "lower", "upper"),
    [
        ("ISPARTA İL", "tr", "\u0131sparta il", "ISPARTA İL"),
        ("Q\u0131z\u0131l Gül", "az", "q\u0131z\u0131l gül", "QIZIL GÜL"),
        (unicodedata.normalize("NFD", "İKİZ"), "tr", "ikiz", "İKİZ"),
        ("ISPARTA", None, "isparta", "ISPARTA"),
        ("ΟΔΟΣ", "el", "οδος"[:3] + "ς", "ΟΔΟΣ"),
    ],
)
def test_letters_change_their_case_by_the_rules_of_the_language(text, code, lower, upper):
    assert change_case(text, "lower", code) == lower
    assert change_case(lower, "upper", code) == upper
    assert change_case(text, "keep", code) == text


def test_languages_are_known_by_code_and_name():
    assert [language_code(name) for name in ("Turkish", "az-AZ", "EN", "zh_CN", "eng", None, " ")] == [
        *("tr", "az", "en", "zh", "en", None, None)
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [("zh-CN", "zh"), ("pt_BR", "pt"), ("deu", "de"), ("germn", "german"), ("Deutsch", "de"), ("中文", "zh")],
)
def test_what_was_probably_meant_is_suggested(given, meant):
    assert f"did you mean {meant}" in language_hint(given)


@pytest.mark.parametrize(
    ("one", "other"),
    [("कितना", "कितने"), ("தமிழ்", "தமழ"), ("ที่", "ท"), ("বাংলা", "বংল"), ("မြန်မာ", "မန")],  # vowel signs
)
def test_words_that_differ_in_a_vowel_sign_stay_different(one, other):
    assert basic(one) != basic(other)
    assert len(basic(one).split()) == 1


def test_optional_points_are_left_out():
    assert basic("كَتَبَ") == basic("كتب") == "كتب"
    assert basic("סֵפֶר") == basic("ספר") == "ספר"


@pytest.mark.parametrize("text", ["Où est l'Élève? (rires) [bruit]", "Größe: 1,5 m — 20 %", "Привет, мир!", "¿Qué?"])
def test_other_texts_are_normalized_as_whisper_does(text):
    assert basic(text) == BasicTextNormalizer()(text).strip()
    assert basic(unicodedata.normalize("NFD", text)) == basic(text)
