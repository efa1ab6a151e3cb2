"""Sentences about calibration, temperature scaling and abstention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import decimal, finite, percent

CALIBRATED = 0.02  # maximum difference of mean confidence and accuracy of a calibrated model
OFF_IN_PLACES = 0.05  # expected calibration error


@dataclass(frozen=True)
class Calibration:
    """Bins of a reliability diagram, means over their `count` rows, expected calibration error and a verdict."""

    bins: list[dict[str, Any]]
    count: int
    confidence: float
    accuracy: float
    error: float
    verdict: str


def measured_calibration(record: RunRecord) -> Calibration | None:
    """Return the calibration of the scored split for card and report; None if it was not measured."""
    error = finite(record.scores.get("ece"))
    bins = [
        entry
        for entry in record.scores.get("calibration") or []
        if entry.get("count") and None not in map(finite, (entry.get("confidence"), entry.get("accuracy")))
    ]
    total = sum(entry["count"] for entry in bins)
    if error is None or not total:
        return None
    confidence = sum(entry["count"] * entry["confidence"] for entry in bins) / total
    accuracy = sum(entry["count"] * entry["accuracy"] for entry in bins) / total
    return Calibration(bins, total, confidence, accuracy, error, _verdict(confidence - accuracy, error))


def _verdict(gap: float, error: float) -> str:
    """Return a description of mean confidence minus accuracy, and of the expected calibration error."""
    if abs(gap) > CALIBRATED:
        word = "overconfident" if gap > 0 else "underconfident"
        return f"the model is {word}, by {abs(gap) * 100:.1f} points"
    if error > OFF_IN_PLACES:
        return "calibrated on average, but overconfident on some rows and underconfident on others"
    return "well calibrated"


def confidence_sentences(record: RunRecord) -> list[str]:
    """Return the results of the techniques temperature_scaling and abstention; empty without them."""
    told = record.metrics.get("techniques")
    found = {name: facts for name, facts in told.items() if isinstance(facts, dict)} if isinstance(told, dict) else {}
    sentences = []
    if (facts := found.get("temperature_scaling")) and finite(facts.get("temperature")) is not None:
        sentences.append(
            f"Its confidence is scaled by a temperature of {decimal(facts['temperature'])}, fitted on validation: "
            f"expected calibration error there {percent(facts.get('validation_ece'))}, before "
            f"{percent(facts.get('validation_ece_before'))}."
        )
    if facts := found.get("abstention"):
        sentences.append(_abstention(record, facts))
    if sentences:
        sentences.append("sft-hf reads these settings from config.json; a plain pipeline ignores them.")
    return sentences


def _abstention(record: RunRecord, facts: dict[str, Any]) -> str:
    threshold = finite(facts.get("threshold"))
    if threshold is None:
        return "It abstains from every answer: on validation, no threshold met the requested error rate."
    parts = [f"It abstains below a confidence of {decimal(threshold)}"]
    for split in ("test", "validation"):
        scores = record.metrics.get(split) or {}
        if finite(scores.get("coverage")) is not None:
            parts.append(f"on {split} it answers {percent(scores['coverage'])} of the rows")
            if finite(scores.get("selective_error")) is not None:
                parts[-1] += f", and {percent(scores['selective_error'])} of these answers are wrong"
    return f"{'; '.join(parts)}."
