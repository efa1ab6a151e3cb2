"""Conversion of a task's outputs to those saved in the run folder, see `sft_hf.core.run.outputs`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sft_hf.core.recipe.component_settings import REGRESSION
from sft_hf.core.run.outputs import MULTI_LABEL, SINGLE_LABEL, TRANSCRIPTION, SplitOutputs
from sft_hf.data.examples import Examples
from sft_hf.tasks.scoring.confidence import Confidence


def of_classifier(
    logits: Tensor,
    examples: Examples,
    split: str,
    labels: Sequence[str],
    confidence: Confidence,
    threshold: float | None,
) -> SplitOutputs:
    """Return a classifier's logits [rows, labels] with the parameters of its decisions.

    Args:
        logits: before the temperature, on the CPU.
        examples: the rows.
        split: "validation" or "test".
        labels: label names, in the order of the columns.
        confidence: temperature and abstention threshold.
        threshold: decision threshold of multi-label rows; None: a row has one label.
    """
    references: np.ndarray | None = None
    if examples.labelled and threshold is None:
        references = np.asarray(examples.references, dtype=np.int64)
    elif examples.labelled:
        references = np.zeros((len(examples), len(labels)), dtype=np.uint8)
        for row, indices in enumerate(examples.references):
            references[row, list(indices)] = 1
    return SplitOutputs(
        split,
        SINGLE_LABEL if threshold is None else MULTI_LABEL,
        examples.row_ids,
        tuple(labels),
        temperature=confidence.temperature,
        threshold=threshold,
        abstention_threshold=confidence.threshold,
        logits=logits.numpy(),
        references=references,
    )


def of_regression(values: Tensor, examples: Examples, split: str, targets: Sequence[str]) -> SplitOutputs:
    """Return a regression's predictions [rows, targets] in the targets' units."""
    references = None
    if examples.labelled:
        references = np.array(list(examples.references), dtype=np.float64).reshape(len(examples), len(targets))
    return SplitOutputs(
        split, REGRESSION, examples.row_ids, tuple(targets), values=values.numpy(), references=references
    )


def of_recogniser(
    hypotheses: Tensor, logprobs: Tensor, examples: Examples, split: str, confidence: Confidence
) -> SplitOutputs:
    """Return a recognizer's hypotheses, int64 [rows, longest] padded with negative numbers, and their logprobs."""
    said = hypotheses >= 0
    return SplitOutputs(
        split,
        TRANSCRIPTION,
        examples.row_ids,
        temperature=confidence.temperature,
        abstention_threshold=confidence.threshold,
        token_ids=hypotheses[said].numpy(),
        logprobs=logprobs[said].numpy(),
        offsets=np.concatenate([[0], said.sum(dim=1).numpy().cumsum()]).astype(np.int64),
    )
