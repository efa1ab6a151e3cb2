"""YAML by the rules people expect, and nothing but plain data."""

from __future__ import annotations

import math

import pytest
import yaml
from tiers import long

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.yaml_files import MAX_BYTES, MAX_VALUES, parse_value, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("1e5", 1e5),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("0x1f", 31),
        ("0o17", 15),
        ("010", 10),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("[a, 1, 2.5]", ["a", 1, 2.5]),
        ("{r: 8}", {"r": 8}),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    assert parse_value(text, "here") == value
    assert type(parse_value(text, "here")) is type(value)


def test_infinity_is_a_number():
    assert parse_value("-.inf", "here") == -math.inf


def test_dump_and_load_agree_and_old_readers_agree_too(tmp_path):
    data = {
        "words": ["no", "3e-5", "1e5", "0x1f", "null", "12:30", "", "yes", "010", "~", "true"],
        "n": 3e-5,
        "none": None,
    }
    text = write_yaml(data)
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == data
    assert yaml.safe_load(text)["words"] == data["words"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system ['true']", ["line 1", "python/object/apply", "plain data"]),
        ("a: 1\nb: !!python/name:os.system ''", ["line 2", "plain data"]),
        ("a: 1\na: 2", ["line 2", "given twice"]),
        ("a: [1, 2", ["not valid YAML"]),
        ("- 1\n- 2", ["mapping of sections", "list"]),
        ("", ["mapping of sections", "empty"]),
        ("? [a]\n: 1", ["key must be plain"]),
        ("? !!set {a}\n: 1", ["line 1", "plain data"]),
        ("a: !!timestamp 2001-01-01", ["line 1", "timestamp", "plain data"]),
        ("a: !!binary /w==", ["line 1", "binary", "plain data"]),
        ("a: !!timestamp no", ["timestamp", "plain data"]),
        ("a: !!map [b]", ["line 1", "expected a mapping"]),
        ("a: !!bool maybe", ["line 1", "'maybe' is not a valid bool"]),
        ("a: !!int ''", ["'' is not a valid int"]),
        ("a: !!float ''", ["'' is not a valid float"]),
        ("a: 0x" + "f" * 5000, ["too long for a number"]),
        ("a: " + "9" * 5000, ["too long for a number"]),
        ("a: 9223372036854775808", ["more than 64 bits"]),
        ("a: " + "[" * 101 + "]" * 101, ["100 deep"]),
        long(("a: " + "[" * 5000, ["100 deep"])),
        ("a: &a [*a]", ["100 deep"]),
        ('a: "\\ud800"', ["half a surrogate"]),
        ('a: {"b\\0": 1}', ["NUL character"]),
        (f"a: &a {'x' * 10_000}\nb: [{'*a, ' * 200}]", ["aliases", "1048576 letters"]),
        long((f"a: [{'1,' * MAX_VALUES}]", ["line 1", "more than 100000 values"])),
        ("a: !" + "x" * 5000 + " 1", ["plain data"]),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert all(word in message for word in ["bad.yaml", *words]), message


@pytest.mark.parametrize(
    ("text", "value"),
    [("!!str 5", "5"), ("!!float 5", 5.0), ("!!int 0x10", 16), ("!!bool True", True), ("!!null ''", None)],
)
def test_a_tag_of_plain_data_is_taken_at_its_word(text, value):
    assert parse_value(text, "here") == value
    assert type(parse_value(text, "here")) is type(value)


def test_a_huge_or_unreadable_file_is_refused(tmp_path):
    (tmp_path / "huge.yaml").write_text("a: " + "x" * MAX_BYTES)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for name in ("huge.yaml", "latin.yaml", "absent.yaml"):
        with pytest.raises(RecipeError, match=name):
            read_yaml(tmp_path / name)
