"""Metrics and predictions of regression models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sft_hf.core.errors import RecipeError
from sft_hf.core.run.outputs import SplitOutputs
from sft_hf.data.examples import Examples
from sft_hf.data.labels.label_map import LabelMap
from sft_hf.tasks.base import Scorer
from sft_hf.tasks.saved_outputs import of_regression
from sft_hf.tasks.scoring.regression import LOWER_IS_BETTER, METRICS, TOGETHER
from sft_hf.tasks.target_scale import Scale


class RegressionScorer(Scorer):
    """Metrics and predictions of a model whose `logits` [rows, targets] are in the targets' units.

    Args:
        names: of the targets, in the order of the outputs.
        scale: of the targets in train.
    """

    lower_is_better: ClassVar[frozenset[str]] = LOWER_IS_BETTER | {"loss"}
    constant_name = "mean of train"

    def __init__(self, names: Sequence[str], scale: Scale) -> None:
        super().__init__()
        self.label_map, self.scale = LabelMap(tuple(names), "label_names"), scale
        self.primary_metric = "rmse" if len(names) == 1 else TOGETHER

    @property
    def names(self) -> list[str]:
        """The names of the targets."""
        return list(self.label_map.names)

    def array(self, references: Sequence[Any]) -> np.ndarray:
        """Return references as float64 [rows, targets]."""
        return np.array(list(references), dtype=np.float64).reshape(len(references), len(self.names))

    def target_spread(self, references: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """See `Scorer.target_spread`."""
        values = self.array(references)
        return {
            name: {
                "min": float(column.min()),
                "mean": float(column.mean()),
                "max": float(column.max()),
                "standard_deviation": float(column.std()),
            }
            for name, column in zip(self.names, values.T, strict=True)
        }

    def metric_names(self) -> list[str]:
        """See `Scorer.metric_names`."""
        return [*([TOGETHER] if len(self.names) > 1 else []), *METRICS, "loss"]

    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """See `Scorer.tune`: nothing to choose."""

    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """See `regression_metrics`; `loss` is the squared error in units of the standard deviation in train."""
        found = self._metrics(outputs["logits"].numpy(), examples.references, confidence_samples)
        return {"loss": float(outputs["loss"].double().mean()), **found}

    def _metrics(self, predictions: np.ndarray, references: Sequence[Any], confidence_samples: int) -> dict[str, Any]:
        from sft_hf.tasks.scoring.regression import regression_metrics

        truth, scales = self.array(references), self.scale.deviation.tolist()
        return regression_metrics(predictions, truth, self.names, scales, confidence_samples=confidence_samples)

    def confidence_and_correctness(
        self, outputs: dict[str, Tensor], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raise NotImplementedError: numbers have no confidence."""
        raise NotImplementedError("regression has no confidence")

    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """Raise NotImplementedError: there is no confidence to calibrate."""
        raise NotImplementedError("regression has no confidence")

    def class_probabilities(self, outputs: dict[str, Tensor]) -> list[dict[str, float]] | None:
        """Raise RecipeError: regression has no classes."""
        raise RecipeError("task.problem_type: regression predicts numbers, and has no probabilities")

    def constant_answer(self, train: Sequence[Any], references: Sequence[Any], confidence_samples: int) -> Any:
        """See `Scorer.constant_answer`: the mean of each target in train."""
        mean = self.array(train).mean(axis=0)
        metrics = self._metrics(np.tile(mean, (len(references), 1)), references, confidence_samples)
        said = (
            f"always answering {mean[0]:.6g}, the mean of train"
            if len(mean) == 1
            else "always answering the means of train"
        )
        return said, metrics

    def compared_metrics(self) -> list[str]:
        """See `Scorer.compared_metrics`."""
        return [name for name in self.metric_names() if name not in ("loss", "pearson", "spearman")]

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return `prediction`: a number, or for several targets {target: number}."""
        return [{"prediction": self._told([_short(value) for value in row])} for row in outputs["logits"].tolist()]

    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """See `Scorer.saved_outputs`: the predictions, in the targets' units."""
        return of_regression(outputs["logits"], examples, split, self.names)

    def reference(self, value: Any) -> Any:
        """Return the number, or {target: number}."""
        return self._told(value)

    def _told(self, numbers: Sequence[float]) -> Any:
        return numbers[0] if len(self.names) == 1 else dict(zip(self.names, numbers, strict=True))


def _short(value: float) -> float:
    """Return the shortest decimal that is equal to this float32: 3.2, not 3.200000047683716."""
    return float(str(np.float32(value)))
