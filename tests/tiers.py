"""Cases of the quick tier, and those that `pytest -m "long or not long"` alone runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(chosen: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases, those that are not among the chosen ones marked as long."""
    missing = [case for case in chosen if case not in (cases := list(cases))]
    assert not missing, f"no such cases: {missing}"
    return [case if case in chosen else long(case) for case in cases]


def long(case: Any) -> Any:
    """A case of the complete tier; a tuple is one value for each argument."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
