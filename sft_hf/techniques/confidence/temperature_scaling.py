"""Temperature scaling."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from sft_hf.data.examples import Examples
from sft_hf.tasks.base import Task
from sft_hf.tasks.scoring.confidence import calibration_metrics
from sft_hf.techniques.base import Technique
from sft_hf.techniques.confidence.settings import TemperatureScalingSettings

log = logging.getLogger("sft_hf")

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the search."""
HALVINGS = 60


def mean_loss(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the mean of -log softmax(z / T)[y], for z [items, classes] and y int64 [items]."""
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, targets))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T in [`LOWEST`, `HIGHEST`] that minimizes `mean_loss`.

    The loss is convex in b = 1 / T: its derivative, the mean over items of E[z] - z_y with the expectation under
    softmax(b z), does not decrease. Its zero is found by bisection; without one in the interval, a bound is optimal
    (the lowest T if every item is right).

    Args:
        logits: float [items, classes], z.
        targets: int64 [items], y.

    Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern Neural Networks, 2017, section 4.2.
    """
    z = logits.double()
    z = z - z.amax(dim=1, keepdim=True)
    right = z.gather(1, targets[:, None]).mean()

    def slope(inverse: float) -> float:
        return float((torch.softmax(inverse * z, dim=1) * z).sum(dim=1).mean() - right)

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(1 / LOWEST) <= 0:
        return LOWEST
    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


class TemperatureScaling(Technique[TemperatureScalingSettings]):
    """Calibrate the confidence of the finished model; predictions do not change.

    After training, logits are divided by a number that maximizes the likelihood of validation. It is saved in the
    config as `confidence_temperature`, and used by predict and evaluate. For multi-label data it is one number for all
    labels; the confidence of a transcript is scaled to the probability that it has no error. The loss in metrics.json
    is not scaled.
    """

    paper = "C. Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2"
    order = 60
    allows_frozen_features = True

    def after_training(self, task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> dict[str, Any]:
        """Fit the temperature; return it, with loss and calibration error on validation before and after."""
        logits, targets = task.scorer.calibration_items(outputs, examples)
        temperature = fit_temperature(logits, targets)
        if temperature == LOWEST:
            log.warning(
                "temperature_scaling: the best temperature for validation (%d rows) is below the minimum, as when "
                "every answer is right: it stays 1; use more validation rows",
                len(examples),
            )
            temperature = 1.0
        before = _calibration_error(task, outputs, examples)
        task.scorer.set_temperature(temperature)
        after = _calibration_error(task, outputs, examples)
        log.info("temperature %.4f: calibration error on validation %.4f, before %.4f", temperature, after, before)
        return {
            "temperature": temperature,
            "validation_nll_before": mean_loss(logits, targets, 1.0),
            "validation_nll": mean_loss(logits, targets, temperature),
            "validation_ece_before": before,
            "validation_ece": after,
        }


def _calibration_error(task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> float:
    confidences, right = task.scorer.confidence_and_correctness(outputs, examples)
    return float(calibration_metrics(confidences.tolist(), right.tolist())["ece"])
