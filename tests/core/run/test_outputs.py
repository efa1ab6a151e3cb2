"""outputs/*.safetensors: what is written is read, the same bytes each time, and nothing that does not fit together."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import expit, softmax

from sft_hf.core.errors import RunFolderError
from sft_hf.core.run.outputs import METADATA_KEY, SplitOutputs, read_outputs, write_outputs

LABELS = ("b", "a", "ü\u2028\n")
LOGITS = np.array([[0.1, -2.0, 3.5], [1e4, -1e4, 0.0]], dtype=np.float32)
ROWS = np.array([7, 3], dtype=np.int64)

SINGLE = SplitOutputs(
    "test",
    "single_label_classification",
    ROWS,
    LABELS,
    temperature=1.7,
    abstention_threshold=0.4,
    logits=LOGITS,
    references=np.array([2, 0]),
)
MULTI = SplitOutputs(
    "validation",
    "multi_label_classification",
    ROWS,
    LABELS,
    threshold=0.35,
    logits=LOGITS,
    references=np.array([[0, 1, 1], [0, 0, 0]], dtype=np.uint8),
)
NUMBERS = SplitOutputs("test", "regression", ROWS, ("price", "area"), values=LOGITS[:, :2].copy())
SPEECH = SplitOutputs(
    "test",
    "transcription",
    ROWS,
    token_ids=np.array([5, 6, 1], dtype=np.int64),
    logprobs=np.array([-0.5, -0.25, 0.0], dtype=np.float32),
    offsets=np.array([0, 3, 3]),
)
ALL = {"single": SINGLE, "multi": MULTI, "numbers": NUMBERS, "speech": SPEECH}


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_is_read(tmp_path, name):
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_outputs(path, ALL[name])
    found = read_outputs(path)
    for field, value in vars(ALL[name]).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(found, field), value)
            assert getattr(found, field).dtype == value.dtype
        else:
            assert getattr(found, field) == value
    write_outputs(again, found)
    assert again.read_bytes() == path.read_bytes()
    assert load_file(path)["row_id"].tolist() == [7, 3]  # by safetensors alone


def test_probabilities_are_those_of_the_temperature():
    np.testing.assert_allclose(SINGLE.probabilities(), softmax(LOGITS.astype(float) / 1.7, axis=1), rtol=1e-12)
    np.testing.assert_allclose(MULTI.probabilities(), expit(LOGITS.astype(float)), rtol=1e-12)
    with pytest.raises(ValueError, match="regression"):
        NUMBERS.probabilities()


@pytest.mark.parametrize(
    ("outputs", "change", "word"),
    [
        (SINGLE, {"problem_type": "ranking"}, "problem_type"),
        (SINGLE, {"row_id": ROWS.astype(np.int32)}, "row_id"),
        (SINGLE, {"row_id": np.array([3, 3])}, "row_id"),
        (SINGLE, {"logits": None}, "logits"),
        (SINGLE, {"logits": LOGITS.astype(np.float64)}, "logits"),
        (SINGLE, {"logits": LOGITS[:1]}, "logits"),
        (SINGLE, {"labels": LABELS[:2]}, "logits"),
        (SINGLE, {"references": np.array([3, 0])}, "references"),
        (SINGLE, {"references": np.array([-1, 0])}, "references"),
        (SINGLE, {"references": np.array([0])}, "references"),
        (MULTI, {"references": np.zeros((2, 3), dtype=np.int64)}, "references"),
        (NUMBERS, {"values": LOGITS}, "values"),
        (SPEECH, {"logprobs": np.zeros(2, dtype=np.float32)}, "logprobs"),
        (SPEECH, {"offsets": np.array([0, 3])}, "offsets"),
        (SPEECH, {"offsets": np.array([0, 4, 3])}, "offsets"),
        (SPEECH, {"offsets": np.array([0, 2, 2])}, "offsets"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(outputs, change, word):
    with pytest.raises(ValueError, match=word):
        replace(outputs, **change)


def damaged(path, how):
    arrays, metadata = load_file(path), None
    if how == "other version":
        metadata = {METADATA_KEY: json.dumps({"format_version": 99})}
    elif how == "another array":
        about = {"split": "test", "problem_type": "regression", "labels": ["x"], "format_version": 1}
        metadata = {METADATA_KEY: json.dumps(about)}
        arrays["extra"] = ROWS
    elif how == "metadata that are no JSON":
        metadata = {METADATA_KEY: "{"}
    elif how == "unknown field":
        metadata = {METADATA_KEY: json.dumps({"format_version": 1, "labels": [], "colour": "red"})}
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "no safetensors":
        path.write_text("logits")
    elif how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        save_file(arrays, path, metadata)


@pytest.mark.parametrize(
    "how",
    [
        "other version",
        "another array",
        "metadata that are no JSON",
        "unknown field",
        "no metadata",
        "cut short",
        "no safetensors",
        "missing",
        "a folder",
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, how):
    path = tmp_path / "test.safetensors"
    write_outputs(path, SINGLE)
    damaged(path, how)
    with pytest.raises(RunFolderError) as caught:
        read_outputs(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
