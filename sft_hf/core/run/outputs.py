"""outputs/SPLIT.safetensors of a run: the model's raw outputs for every row, before any decision.

There is one file per predicted split, labeled or not, from the same pass as metrics.json. Ensembles, conformal
prediction, label audits and distillation read these files; nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sft_hf.core.errors import RunFolderError
from sft_hf.core.recipe.component_settings import REGRESSION

FORMAT_VERSION = 1
METADATA_KEY = "sft_hf"
"""The only key of the file's metadata: everything but the arrays, as JSON. Several keys would be in random order."""

SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"
TRANSCRIPTION = "transcription"

_ARRAYS: dict[str, dict[str, tuple[str, int]]] = {
    SINGLE_LABEL: {"logits": ("float32", 2)},
    MULTI_LABEL: {"logits": ("float32", 2)},
    REGRESSION: {"values": ("float32", 2)},
    TRANSCRIPTION: {"token_ids": ("int64", 1), "logprobs": ("float32", 1), "offsets": ("int64", 1)},
}
_REFERENCES: dict[str, tuple[str, int]] = {
    SINGLE_LABEL: ("int64", 1),
    MULTI_LABEL: ("uint8", 2),
    REGRESSION: ("float64", 2),
}
"""By problem type: {array: (type, dimensions)}, and (type, dimensions) of the references, if any."""


@dataclass(frozen=True, eq=False)
class SplitOutputs:
    """A model's outputs for the rows of a split.

    Attributes:
        split: "validation" or "test".
        problem_type: single_label_classification, multi_label_classification, regression or transcription.
        row_id: int64 [rows], positions of the rows in their source; `id` in predictions.jsonl.
        labels: names of the labels (regression: of the targets), in the order of the columns.
        temperature: divisor of the logits before softmax or sigmoid. The saved logits are NOT divided.
        threshold: minimum probability (after the temperature) at which a multi-label row gets a label.
        abstention_threshold: confidence below which the run abstains; None: never.
        logits: float32 [rows, labels], of a classifier.
        values: float32 [rows, targets], the predictions of a regression in the targets' own units.
        token_ids: int64 [tokens], of a speech recognizer: the hypotheses of all rows, concatenated. With a decoder, the
            tokens of the text and the end token; for CTC, the most likely token of each frame, including blanks.
        logprobs: float32 [tokens], the log-probability of each of them.
        offsets: int64 [rows + 1]: row i has token_ids[offsets[i]:offsets[i + 1]].
        references: the correct answers, if the split has labels: int64 [rows], uint8 [rows, labels] of 0 and 1, or
            float64 [rows, targets]. None for unlabeled rows, and for transcripts.
    """

    split: str
    problem_type: str
    row_id: npt.NDArray[np.int64]
    labels: tuple[str, ...] = ()
    temperature: float = 1.0
    threshold: float | None = None
    abstention_threshold: float | None = None
    logits: npt.NDArray[np.float32] | None = None
    values: npt.NDArray[np.float32] | None = None
    token_ids: npt.NDArray[np.int64] | None = None
    logprobs: npt.NDArray[np.float32] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    references: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for inconsistent arrays."""
        if problem := _problem(self):
            raise ValueError(problem)

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def multi_label(self) -> bool:
        """Whether a row may have any number of labels."""
        return self.problem_type == MULTI_LABEL

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return softmax (multi-label: sigmoid) of the logits divided by the temperature, [rows, labels].

        Raises ValueError for outputs that are not a classifier's.
        """
        if self.logits is None:
            raise ValueError(f"{self.problem_type} has no probabilities of labels")
        scaled = self.logits.astype(np.float64) / self.temperature
        if self.multi_label:
            return np.asarray(np.exp(-np.logaddexp(0.0, -scaled)))
        shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


_ARRAY_NAMES = ("row_id", "logits", "values", "token_ids", "logprobs", "offsets", "references")


def write_outputs(path: Path, outputs: SplitOutputs) -> None:
    """Write outputs to a file that `read_outputs` reads. Equal outputs give equal bytes. Raises OSError."""
    arrays = {name: value for name in _ARRAY_NAMES if (value := getattr(outputs, name)) is not None}
    about = {field.name: getattr(outputs, field.name) for field in fields(outputs) if field.name not in _ARRAY_NAMES}
    about["format_version"] = FORMAT_VERSION
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, {METADATA_KEY: text})


def read_outputs(path: str | Path) -> SplitOutputs:
    """Read a file of outputs/. Raises RunFolderError for one that is missing, broken or of another format."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = _about(file.metadata())
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if unknown := sorted(set(arrays) - set(_ARRAY_NAMES)):
            raise ValueError(f"unknown array {unknown[0]!r}")
        return SplitOutputs(**about, **arrays)
    except FileNotFoundError:
        raise RunFolderError(f"{path}: no such file; a run writes outputs/ unless that was disabled") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path}: cannot be read as a run's outputs: {error}") from None


def _about(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if METADATA_KEY not in (metadata or {}):
        raise ValueError(f"its metadata has no {METADATA_KEY!r}")
    assert metadata is not None
    about = json.loads(metadata[METADATA_KEY])
    version = about.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version!r}, and this sft-hf reads {FORMAT_VERSION}")
    return {**about, "labels": tuple(about["labels"])}


# --- validation --------------------------------------------------------------------------------------------------


def _problem(found: SplitOutputs) -> str | None:
    """Return a description of the first inconsistency, or None."""
    wanted = _ARRAYS.get(found.problem_type)
    if wanted is None:
        return f"problem_type {found.problem_type!r}; valid are {', '.join(_ARRAYS)}"
    if found.row_id.dtype != np.int64 or found.row_id.ndim != 1:
        return f"row_id is {_described(found.row_id)}, and has to be int64 [rows]"
    if len(np.unique(found.row_id)) != len(found.row_id):
        return "row_id has a row twice"
    for name, (kind, dimensions) in wanted.items():
        array = getattr(found, name)
        if array is None:
            return f"{name} is missing, which {found.problem_type} has"
        if array.dtype != kind or array.ndim != dimensions:
            return f"{name} is {_described(array)}, and has to be {kind} with {dimensions} dimension(s)"
        if dimensions == 2 and array.shape != (len(found), len(found.labels)):
            return f"{name} is {_described(array)}, for {len(found)} rows and {len(found.labels)} labels"
    if found.problem_type == TRANSCRIPTION:
        return _problem_of_offsets(found)
    return _problem_of_references(found)


def _problem_of_offsets(found: SplitOutputs) -> str | None:
    assert found.token_ids is not None and found.logprobs is not None and found.offsets is not None
    if len(found.logprobs) != len(found.token_ids):
        return f"{len(found.logprobs)} logprobs for {len(found.token_ids)} token_ids"
    ends = found.offsets
    if len(ends) != len(found) + 1 or ends[0] != 0 or ends[-1] != len(found.token_ids) or (np.diff(ends) < 0).any():
        return f"offsets do not divide {len(found.token_ids)} tokens among {len(found)} rows"
    return None


def _problem_of_references(found: SplitOutputs) -> str | None:
    array = found.references
    if array is None:
        return None
    kind, dimensions = _REFERENCES[found.problem_type]
    shape = (len(found), len(found.labels))[:dimensions]
    if array.dtype != kind or array.shape != shape:
        return f"references are {_described(array)}, and have to be {kind} {list(shape)}"
    if found.problem_type == SINGLE_LABEL and len(array) and not 0 <= array.min() <= array.max() < len(found.labels):
        return f"references name labels from {array.min()} to {array.max()}, and there are {len(found.labels)}"
    return None


def _described(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
