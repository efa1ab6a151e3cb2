"""What a trained model's confidence is turned into: scaled by a temperature, and too little of it to answer at all.

Both are chosen on validation after training (techniques temperature_scaling and abstention), stand in the saved model's
config, and do nothing by default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_hf.core.errors import CheckpointError
from sft_hf.tasks.scoring.calibration import calibration_metrics, selective_metrics

# Not `temperature`, which Transformers takes for a setting of text generation.
TEMPERATURE, THRESHOLD = "confidence_temperature", "abstention_threshold"
NEVER = 2.0
"""A threshold that no confidence reaches."""
CLOSEST = 1e-7  # to 0 and 1, of a probability whose logit is taken


@dataclass
class Confidence:
    """Temperature T of the confidence, and the confidence below which a model abstains; None: never."""

    temperature: float = 1.0
    threshold: float | None = None

    @classmethod
    def of(cls, config: Any) -> Confidence:
        """Return what a saved config says. Raises CheckpointError for what can be no temperature or threshold."""
        temperature, threshold = getattr(config, TEMPERATURE, 1.0), getattr(config, THRESHOLD, None)
        if not _is_number(temperature) or temperature == 0:
            raise CheckpointError(f"config.json: {TEMPERATURE} is {temperature!r}; it must be a number above 0")
        if threshold is not None and not _is_number(threshold):
            raise CheckpointError(f"config.json: {THRESHOLD} is {threshold!r}; it must be a number, or null")
        return cls(float(temperature), None if threshold is None else float(threshold))

    def write(self, config: Any) -> None:
        """Put into a config what is not the default, and take out what an earlier training put there."""
        values = {TEMPERATURE: None if self.temperature == 1 else self.temperature, THRESHOLD: self.threshold}
        for name, value in values.items():
            if value is not None:
                setattr(config, name, value)
            elif hasattr(config, name):
                delattr(config, name)

    def scaled(self, logits: Tensor) -> Tensor:
        """Return z / T (C. Guo et al., On Calibration of Modern Neural Networks, 2017, equation 9)."""
        return logits if self.temperature == 1 else logits / self.temperature

    def of_probabilities(self, probabilities: Tensor) -> list[float]:
        """Return sigmoid(logit(p) / T) of [rows]: the same for answers that are no choice among a few."""
        if self.temperature == 1:
            return [float(value) for value in probabilities.tolist()]
        scaled = torch.sigmoid(self.scaled(logits_of(probabilities)[:, 1]))
        return [float(value) for value in scaled.tolist()]

    def told(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a prediction with `abstain`, where a threshold was chosen: whether its confidence is below it."""
        return row if self.threshold is None else {**row, "abstain": row["confidence"] < self.threshold}

    def metrics(self, confidences: np.ndarray, right: np.ndarray) -> dict[str, Any]:
        """Return calibration, and where a threshold was chosen, what is answered, and how much of that is wrong."""
        found = calibration_metrics(confidences.tolist(), right.tolist())
        return found if self.threshold is None else found | selective_metrics(confidences, right, self.threshold)


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value) and value >= 0


def logits_of(probabilities: Tensor) -> Tensor:
    """Return float64 [rows, 2], 0 and log(p / (1 - p)): logits of wrong and right."""
    p = probabilities.double().clamp(CLOSEST, 1 - CLOSEST)
    return torch.stack([torch.zeros_like(p), torch.log(p) - torch.log1p(-p)], dim=1)
