"""The scorer of a task: metrics, choices made on validation, and predictions. It needs no model."""

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
    """Turns the outputs of `Task.predict_batch`, on the CPU, into predictions and metrics; created by `Task.fit`.

    `outputs` are tensors whose first dimension is the row, `examples` are the same rows with their references.
    """

    primary_metric: str
    """The metric that model selection maximizes."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """The metrics that model selection minimizes instead."""

    def __init__(self) -> None:
        self.confidence = Confidence()

    def close_calls(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """Return rows whose answer could differ between float32 and reduced precision, bool [rows]; None: unknown."""
        return None

    @abstractmethod
    def metric_names(self) -> list[str]:
        """Return the metrics that model selection may use, including `loss`."""

    @abstractmethod
    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """Choose values on validation after training, such as a decision threshold."""

    @abstractmethod
    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """Return the metrics of a split; with `confidence_samples` resamples, also intervals and per-class metrics."""

    @abstractmethod
    def confidence_and_correctness(
        self, outputs: dict[str, Tensor], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the confidence of each answer, as in `decode`, float64 [rows], and its correctness, bool [rows]."""

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the confidence; thresholds on it are scaled too, so that no answer changes."""
        self.confidence.temperature = temperature

    @abstractmethod
    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """Return the data to fit a temperature to: unscaled logits [items, classes] and classes, int64 [items]."""

    def constant_answer(
        self, train: Sequence[Any], references: Sequence[Any], confidence_samples: int
    ) -> tuple[str, dict[str, Any]] | None:
        """Return the best constant answer: its description, and its metrics on `references`; None if there is none.

        Args:
            train: references of the training rows, from which the answer is chosen.
            references: of the split to score.
            confidence_samples: as in `score`.
        """
        return None

    constant_name: str = "majority class"
    """The name of `constant_answer` in metrics.json."""

    def compared_metrics(self) -> list[str]:
        """Return the metrics of a baseline in metrics.json."""
        return [self.primary_metric]

    def label_counts(self, references: Sequence[Any]) -> dict[str, int] | None:
        """Return the number of rows of each label, in label order; None for a task without labels."""
        return None

    def target_spread(self, references: Sequence[Any]) -> dict[str, dict[str, float]] | None:
        """Return minimum, mean, maximum and standard deviation of each target; None for a task without numbers."""
        return None

    @abstractmethod
    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return one JSON-serializable prediction per row."""

    @abstractmethod
    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """Return the outputs of `predict_batch` for the rows of a split, as saved in the run folder."""

    @abstractmethod
    def reference(self, value: Any) -> Any:
        """Return a reference as written to predictions.jsonl."""

    def class_probabilities(self, outputs: dict[str, Tensor]) -> list[dict[str, float]] | None:
        """Return the probability of every class, for each row; None for a task without classes."""
        return None

    def decode_inputs(self, outputs: dict[str, Tensor], examples: Examples) -> list[dict[str, Any]]:
        """Return one prediction per row of `read_inputs`, even if `prepare_inputs` has split it into several."""
        return self.decode(outputs)
