"""Splits as a data section loads them from a source, and the line that refuses to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.sections import DataSection
from sft_hf.data.loading.loading import load_splits
from sft_hf.data.loading.roles import Splits


def section(**changes) -> DataSection:
    return DataSection(**{"name": "data", **changes})


def load(changed: DataSection, source: SimpleNamespace) -> Splits:
    keys = ("text_column", "text_pair_column", "label_column")
    columns = {f"data.{key}": getattr(changed, key) for key in keys if getattr(changed, key)}
    return load_splits(changed, source, columns)


def refusal(changed: DataSection, source: SimpleNamespace) -> str:
    with pytest.raises(DataError) as error:
        load(changed, source)
    assert "\n" not in str(error.value)
    return str(error.value)
