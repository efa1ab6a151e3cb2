"""What the text classifiers of this package return: logits, and with labels the loss that `problem_type` names."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput


def classifier_output(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> SequenceClassifierOutput:
    """Return the logits, and the mean loss if there are labels.

    Args:
        logits: [rows, labels].
        labels: [rows] indices; [rows, labels] of 0 and 1 for `multi_label_classification`; numbers, as many as there
            are logits, for `regression`.
        problem_type: of the model's config; None, as anything else, means one label per row.
    """
    loss = None
    if labels is not None and problem_type == "multi_label_classification":
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    elif labels is not None and problem_type == "regression":
        loss = functional.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape))
    elif labels is not None:
        loss = functional.cross_entropy(logits, labels)
    return SequenceClassifierOutput(loss=loss, logits=logits)
