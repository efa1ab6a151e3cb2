from __future__ import annotations

import pytest

from sft_hf.data.labels.values import (
    flag,
    is_hidden,
    looks_like_list,
    name_of,
    parse_list,
    parse_vector,
    similar_key,
    split_labels,
    whole_number,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["x", "y"]', ["x", "y"]),
        ("['x', 'y z']", ["x", "y z"]),
        ("['x' 'y z']", ["x", "y z"]),
        ("['x'\n 'y' 'z']", ["x", "y", "z"]),
        ("['it\\'s' \"a 'b'\"]", ["it's", "a 'b'"]),
        ("[3 14  7]", [3, 14, 7]),
        ("[1. 0.]", [1.0, 0.0]),
        ("{'x', 'y'}", ["x", "y"]),
        ("('x',)", ["x"]),
        ("(3, 17)", [3, 17]),
        ("set()", []),
        ("[]", []),
        ("[np.str_('x'), np.str_('y')]", ["x", "y"]),
        ("[np.int64(4), np.int64(2)]", [4, 2]),
        ("array(['x', 'y'], dtype='<U5')", ["x", "y"]),
        ("array(['x'], dtype=object)", ["x"]),
        ("tensor([1, 0], device='cuda:0')", [1, 0]),
        ("frozenset({'x'})", ["x"]),
        ("[True, False]", [True, False]),
    ],
)
def test_lists_as_json_python_and_numpy_write_them(text, items):
    assert parse_list(text) == items and parse_list(f"  {text}\n") == items


@pytest.mark.parametrize(
    "text",
    [
        *("x", "", "x, y", "[x, y]", "[unk]", "{}", "{'x': 1}", "(1)", "('x')", "[1,,2]", "['x''y']"),
        *("['x', 'y' 'z']", "[0 0 ... 1]", "['x'", "__import__('os')", "[__import__('os')]", "['x' + 'y']"),
        "[" * 5000,
    ],
)
def test_texts_that_are_no_lists(text):
    assert parse_list(text) is None


def test_vectors_without_brackets():
    assert parse_vector("1 0 1") == [1, 0, 1] and parse_vector("1.0, 0.0,1") == [1, 0, 1]
    assert parse_vector("0|1|1") == [0, 1, 1]
    assert parse_vector("1 0 2") is parse_vector("101") is parse_vector("1") is None
    assert looks_like_list("[x, y]") and not looks_like_list("[unk]") and not looks_like_list("x y")


def test_flags_and_hidden_labels():
    assert [flag(value) for value in (1, 0.0, True, "1.0", "2", 0.5, None)] == [True, False, True, True, *[None] * 3]
    assert yes_or_no(" Yes") is True and yes_or_no("FALSE") is False and yes_or_no("maybe") is None
    assert all(map(is_hidden, (-1, -1.0, "-1", "-1.0", [-1, -1], "[-1, -1]")))
    assert not any(map(is_hidden, (1, "-10", "a", [], [-1, 0], True, None)))


def test_names():
    assert name_of("Cafe\u0301") == "Caf\u00e9" == name_of(0, ["Cafe\u0301"])
    assert whole_number("007.0") == 7 and whole_number("1.5") is whole_number("v1") is None
    assert split_labels(" a,b , ", "comma") == ["a", "b"] and split_labels("a\t b", "space") == ["a", "b"]
    assert split_labels("a ~ b", "~") == ["a", "b"]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Food", "food ", True),
        ("ice-cream", "Ice cream", True),
        ("credit_card", "credit card", True),
        ("yes.", "Yes", True),
        ("Cafe\u0301", "caf\u00e9", True),
        ("STRASSE", "stra\u00dfe", True),
        ("A-", "A", False),
        ("c++", "c", False),
        ("-1", "1", False),
        ("1.10", "1.1", False),
    ],
)
def test_what_is_similar(left, right, same):
    assert (similar_key(left) == similar_key(right)) is same
