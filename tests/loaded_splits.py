"""Splits as a data section loads them from a source, and the line that refuses to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sft_hf.data.loading import Splits, load_splits
from sft_hf.errors import DataError


def section(**changes) -> SimpleNamespace:
    defaults = {
        "config_name": None,
        "data_files": None,
        "train_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "text_column": "text",
        "text_pair_column": None,
        "label_column": "label",
        "delimiter": None,
        "quote_char": '"',
        "skip_lines": 0,
        "file_prefix": "",
        "file_suffix": "",
        "streaming": False,
    }
    return SimpleNamespace(**{**defaults, **changes})


def load(changed: SimpleNamespace, source: SimpleNamespace) -> Splits:
    keys = ("text_column", "text_pair_column", "label_column")
    columns = {f"data.{key}": getattr(changed, key) for key in keys if getattr(changed, key)}
    return load_splits(changed, source, columns)


def refusal(changed: SimpleNamespace, source: SimpleNamespace) -> str:
    with pytest.raises(DataError) as error:
        load(changed, source)
    assert "\n" not in str(error.value)
    return str(error.value)
