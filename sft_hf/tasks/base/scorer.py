"""The scorer of a task: metrics, choices made on validation, and answers. It needs no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from sft_hf.data.examples import Examples
from sft_hf.tasks.scoring.confidence import Confidence

if TYPE_CHECKING:
    from sft_hf.core.run.outputs import SplitOutputs


class Scorer(ABC):
    """From the outputs of `Task.predict_batch`, on the CPU, to answers and metrics; known after `Task.fit`.

    `outputs` are tensors whose first dimension is the row, `examples` the same rows with their references.
    """

    primary_metric: str
    """The metric that model selection maximises."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """The metrics that model selection minimises instead."""

    def __init__(self) -> None:
        self.confidence = Confidence()

    def close_calls(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """Rows that float32 might answer otherwise than reduced precision did, bool [rows]; None: unknown."""
        return None

    @abstractmethod
    def metric_names(self) -> list[str]:
        """The metrics that model selection may go by, `loss` among them."""

    @abstractmethod
    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """Choose what is chosen on validation outside training (a decision threshold, say)."""

    @abstractmethod
    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """Metrics of a split; with `confidence_samples` bootstrap resamples, intervals and per-class figures too."""

    @abstractmethod
    def confidence_and_correctness(
        self, outputs: dict[str, Tensor], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray]:
        """Confidence of each row's answer, as in `decode`, float64 [rows]; whether it is correct, bool [rows]."""

    def set_temperature(self, temperature: float) -> None:
        """Scale the confidence from now on; what is decided by it is scaled too, so that no answer changes."""
        self.confidence.temperature = temperature

    @abstractmethod
    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """What a temperature is fitted to: logits [items, classes] before any, and the right classes, int64 [items]."""

    def constant_answer(
        self, train: Sequence[Any], references: Sequence[Any], confidence_samples: int
    ) -> tuple[str, dict[str, Any]] | None:
        """The best that needs no model: a sentence on it, and its metrics on `references`. None: there is none.

        Args:
            train: references of the training rows, from which the answer is chosen.
            references: of the split that is scored.
            confidence_samples: as in `score`.
        """
        return None

    constant_name: str = "majority class"
    """What metrics.json calls `constant_answer`."""

    def compared_metrics(self) -> list[str]:
        """The metrics that metrics.json holds of a baseline."""
        return [self.primary_metric]

    def label_counts(self, references: Sequence[Any]) -> dict[str, int] | None:
        """Rows of each label, in label order; None for a task without labels."""
        return None

    def target_spread(self, references: Sequence[Any]) -> dict[str, dict[str, float]] | None:
        """Smallest, mean and largest value and standard deviation of each target; None for a task without numbers."""
        return None

    @abstractmethod
    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """One JSON-ready prediction per row."""

    @abstractmethod
    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """What `predict_batch` gave for the rows of a split, as the run folder keeps it."""

    @abstractmethod
    def reference(self, value: Any) -> Any:
        """A reference as written to predictions.jsonl."""

    def class_probabilities(self, outputs: dict[str, Tensor]) -> list[dict[str, float]] | None:
        """The probability of every class, for each row; None for a task without classes."""
        return None

    def decode_inputs(self, outputs: dict[str, Tensor], examples: Examples) -> list[dict[str, Any]]:
        """One JSON-ready prediction per row of `read_inputs`, whatever number of inputs `prepare_inputs` made of it."""
        return self.decode(outputs)
