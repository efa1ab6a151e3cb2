"""Abstention: no answer if the confidence is below a threshold."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from scipy.stats import beta
from torch import Tensor

from sft_hf.data.examples import Examples
from sft_hf.tasks.base import Task
from sft_hf.tasks.scoring.confidence import NEVER, selective_metrics
from sft_hf.techniques.base import Technique
from sft_hf.techniques.confidence.settings import AbstentionSettings

log = logging.getLogger("sft_hf")


def upper_bound(errors: np.ndarray, answered: np.ndarray, level: float) -> np.ndarray:
    """Return the one-sided Clopper-Pearson upper bound of an error rate, [cases].

    Args:
        errors, answered: int [cases], k wrong ones of n answers, n >= 1.
        level: confidence level of the bound, e.g. 0.95.

    Source: C. J. Clopper and E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the
    binomial, 1934: the p at which k or fewer errors among n have the probability 1 - level; 1 if all are wrong.
    """
    bound = beta.ppf(level, errors + 1, np.maximum(answered - errors, 1))
    return np.where(errors == answered, 1.0, bound)


def choose_abstention(
    confidences: np.ndarray, correct: np.ndarray, error_rate: float, level: float | None
) -> float | None:
    """Return the lowest threshold at which the answers' error rate is at most `error_rate`; None if there is none.

    Rows with a confidence of at least the threshold are answered. If all may be answered, it is 0.

    Args:
        confidences: float [rows].
        correct: bool [rows].
        error_rate: maximum error rate of the answers.
        level: compare the upper bound at this level instead of the rate itself. It holds for each single threshold,
            and is not corrected for multiple comparisons.

    Source: Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, 2017, section 3. Algorithm 1
    there finds the threshold by bisection, and divides 1 - level by the number of its steps.
    """
    order = np.argsort(-confidences, kind="stable")
    ordered = confidences[order]
    answered = np.arange(1, len(ordered) + 1)
    errors = np.cumsum(~correct[order])
    rates = errors / answered if level is None else upper_bound(errors, answered, level)
    last_of_equals = np.append(ordered[1:] < ordered[:-1], True)
    allowed = np.flatnonzero(last_of_equals & (rates <= error_rate))
    if not len(allowed):
        return None
    return 0.0 if allowed[-1] == len(ordered) - 1 else float(ordered[allowed[-1]])


class Abstention(Technique[AbstentionSettings]):
    """Mark uncertain predictions, so that the others have at most a given error rate.

    After training, the lowest confidence is found on validation above which few enough predictions are wrong. It is
    saved in the config as `abstention_threshold`, predictions get "abstain": true or false, and metrics.json reports
    coverage (the share of rows answered) and their error rate on validation and test. For multi-label data it applies
    to the most probable label; a transcript counts as wrong if it has any error. Combines well with
    temperature_scaling.
    """

    paper = "Y. Geifman and R. El-Yaniv, Selective Classification for Deep Neural Networks, 2017, section 3"
    order = 70
    allows_frozen_features = True

    def after_training(self, task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> dict[str, Any]:
        """Choose the threshold; return it and its effect on validation."""
        settings = self.settings
        level = settings.confidence_level if settings.bound == "clopper_pearson" else None
        confidences, right = task.scorer.confidence_and_correctness(outputs, examples)
        found = choose_abstention(confidences, right, settings.error_rate, level)
        if found is None:
            log.warning(
                "abstention: at no threshold is the error rate%s on validation (%d rows) at most %g, so the model "
                "abstains from all answers; allow a higher error_rate, or use more validation rows%s",
                "'s upper bound" if level else "",
                len(right),
                settings.error_rate,
                ", or bound: plain" if level else "",
            )
        task.scorer.confidence.threshold = NEVER if found is None else found
        told = {"threshold": found, **selective_metrics(confidences, right, task.scorer.confidence.threshold)}
        if found is not None:
            log.info("abstention below a confidence of %.4f: coverage %.4f on validation", found, told["coverage"])
        return told
