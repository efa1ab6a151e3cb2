"""Output of this package's text classifiers: logits, and the loss of the `problem_type` if there are labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput


def classifier_output(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> SequenceClassifierOutput:
    """Return the logits, and the mean loss if there are labels.

    Args:
        logits: [rows, labels].
        labels: [rows] indices; for `multi_label_classification`, [rows, labels] of 0 and 1; for `regression`, as many
            numbers as logits.
        problem_type: from the model's config; None and other values mean one label per row.
    """
    loss = None
    if labels is not None and problem_type == "multi_label_classification":
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    elif labels is not None and problem_type == "regression":
        loss = functional.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape))
    elif labels is not None:
        loss = functional.cross_entropy(logits, labels)
    return SequenceClassifierOutput(loss=loss, logits=logits)
