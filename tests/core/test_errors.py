"""The exception tree and its hints."""

from __future__ import annotations

import pytest

from sft_hf.core import errors
from sft_hf.core.errors import DataError, SftError, TrainingError, did_you_mean


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("RecipeError", 2),
        ("SourceError", 2),
        ("DataError", 2),
        ("CheckpointError", 2),
        ("RunFolderError", 2),
        ("TrainingError", 1),
        ("StorageError", 74),
        ("Terminated", 143),
    ],
)
def test_exit_codes_are_those_of_the_contract(kind, code):
    assert getattr(errors, kind).exit_code == code


def test_the_hint_names_the_nearest_and_then_what_is_valid():
    assert did_you_mean("lable", ["text", "label"]) == "did you mean label? Valid: text, label"
    assert did_you_mean("zzz", ["text", "label"]) == "Valid: text, label"
    assert did_you_mean("label", ["text", "label "]) == "did you mean 'label '? Valid: text, 'label '"
    assert did_you_mean("x", []) == "There are none"
    assert did_you_mean("n", [f"n{i}" for i in range(20)], limit=2).endswith("n0, n1, ... (20 in all)")


def test_a_notebook_shows_a_mistake_as_one_line():
    """IPython displays what this method returns; the traceback of anything else is needed to find its cause."""
    assert DataError("train row 3")._render_traceback_() == ["DataError: train row 3"]
    assert not any(hasattr(kind("x"), "_render_traceback_") for kind in (SftError, TrainingError))
