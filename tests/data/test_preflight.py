"""Rows that two splits share, and rows that contradict each other, against a plain comparison of all pairs."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from sft_hf.data.preflight import find_duplicates


def split(texts, labels=None, first=0):
    rows = {"text": texts, "row_id": list(range(first, first + len(texts)))}
    return Dataset.from_dict({**rows, "label": labels or ["x"] * len(texts)})


def texts_of(findings):
    return [finding.text for finding in findings if finding.level == "warning"]


def test_shared_rows_are_counted_and_named():
    splits = {
        "train": split(["a b", "c", "d", "e"]),
        "validation": split(["x", "C "], first=10),
        "test": split(["A  b", "y", "c", "x"], first=20),
    }
    found = texts_of(find_duplicates(splits, ["text"], "label"))
    assert [text.split(";")[0] for text in found] == [
        "1 of 2 validation rows (50.0%) are in train too: rows 11 (is train row 1)",
        "2 of 4 test rows (50.0%) are in train too: rows 20 (is train row 0), 22 (is train row 1)",
        "2 of 4 test rows (50.0%) are in validation too: rows 22 (is validation row 11), 23 (is validation row 10)",
    ]


def test_the_remedy_for_rows_held_out_of_a_table_is_to_change_the_table():
    splits = {"train": split(["a", "b"]), "test": split(["a"], first=2)}
    (given,) = texts_of(find_duplicates(splits, ["text"]))
    (drawn,) = texts_of(find_duplicates(splits, ["text"], held_out=["test"]))
    assert "remove them from test" in given and "drop_duplicates" not in given
    assert "df.drop_duplicates(['text'])" in drawn and "remove them from test" not in drawn


def test_counts_are_those_of_comparing_all_pairs():
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows = {role: [str(n) for n in generator.integers(0, 30, 12)] for role in ("train", "validation", "test")}
        found = texts_of(find_duplicates({role: split(texts) for role, texts in rows.items()}, ["text"]))
        expected = {
            (one, two): sum(text in rows[one] for text in rows[two])
            for one, two in (("train", "validation"), ("train", "test"), ("validation", "test"))
        }
        for (one, two), count in expected.items():
            said = [text for text in found if f"{two} rows" in text and f"are in {one} too" in text]
            assert [int(text.split()[0]) for text in said] == ([count] if count else [])


def test_contradictions_are_named():
    train = split(["a", "b", "A", "c", "b"], ["1", "2", "2", "1", "2"])
    (text,) = texts_of(find_duplicates({"train": train}, ["text"], "label"))
    assert text.startswith("1 training inputs are duplicated with conflicting values of 'label': rows 0 and 2;")


def test_pairs_are_the_same_only_if_both_texts_are():
    def pairs(first, second):
        return Dataset.from_dict({"text": first, "other": second, "row_id": list(range(len(first)))})

    splits = {"train": pairs(["a", "b"], ["c", "d"]), "test": pairs(["a", "b"], ["d", "d"])}
    (text,) = texts_of(find_duplicates(splits, ["text", "other"]))
    assert text.startswith("1 of 2 test rows (50.0%) are in train too: rows 1 (is train row 1)")


def test_files_are_the_same_byte_for_byte_and_only_likely_ones_are_read(tmp_path, monkeypatch):
    contents = {"a": b"1234", "b": b"1235", "c": b"12", "copy": b"1234", "alone": b"1234567"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def files(*names):
        return Dataset.from_dict({"image": [str(tmp_path / name) for name in names]})

    splits = {"train": files("a", "c"), "test": files("b", "copy", "alone")}
    opened = []
    from sft_hf.data import preflight

    plain = open
    monkeypatch.setattr(
        preflight, "open", lambda path, mode: (opened.append(path), plain(path, mode))[1], raising=False
    )
    (text,) = texts_of(find_duplicates(splits, ["image"], files=["image"]))
    assert text.startswith("1 of 3 test rows (33.3%) are in train too: rows 1 (is train row 0)")
    assert sorted(path.rsplit("/", 1)[1] for path in opened) == ["a", "b", "copy"]


def test_bytes_in_a_table_are_compared_too():
    def table(*values):
        return Dataset.from_dict({"image": list(values)})

    (text,) = texts_of(find_duplicates({"train": table(b"x", b"y"), "test": table(b"y")}, ["image"], files=["image"]))
    assert text.startswith("1 of 1 test rows")


def test_rows_that_are_all_different_give_no_word():
    assert find_duplicates({"train": split(["a", "b"]), "test": split(["c"])}, ["text"], "label") == []


def test_unicode_forms_of_a_text_are_the_same():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    found = texts_of(find_duplicates({"train": split([composed, "b"]), "test": split([decomposed])}, ["text"]))
    assert found and found[0].startswith("1 of 1 test rows")
    assert texts_of(find_duplicates({"train": split([composed, decomposed], ["x", "y"])}, ["text"], "label"))
    assert not texts_of(find_duplicates({"train": split(["a", "a"], [composed, decomposed])}, ["text"], "label"))
