"""Columns read without what is not needed of them."""

from __future__ import annotations

import pytest
from datasets import Dataset, Features, Image, Value

from sft_hf.data.columns import texts_or_paths


@pytest.mark.parametrize("features", [Features({"file": Image(decode=False)}), None])
def test_of_files_the_paths_alone(features):
    cells = [{"bytes": b"x", "path": "a.png"}, {"bytes": b"y", "path": None}, {"bytes": None, "path": "c"}]
    table = Dataset.from_dict({"file": cells}, features)
    assert list(texts_or_paths(table, "file")) == ["a.png", None, "c"]
    assert list(texts_or_paths(table.select([2, 0]), "file")) == ["c", "a.png"]


def test_texts_and_what_is_none():
    table = Dataset.from_dict({"text": ["a", None, ""] * 400, "blob": [b"a", b"b", b"c"] * 400})
    assert list(texts_or_paths(table, "text")) == ["a", None, ""] * 400
    assert list(texts_or_paths(table, "blob")) == [None] * 1200
    assert list(texts_or_paths(table.cast_column("text", Value("large_string")), "text"))[:2] == ["a", None]
