"""Sentences on calibration, and on temperature scaling and abstention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import decimal, finite, percent

CALIBRATED = 0.02  # a mean confidence this near to the share of right answers is taken at its word
OFF_IN_PLACES = 0.05  # expected calibration error


@dataclass(frozen=True)
class Calibration:
    """Bins of a reliability diagram, means over their `count` rows, expected calibration error and its verdict."""

    bins: list[dict[str, Any]]
    count: int
    confidence: float
    accuracy: float
    error: float
    verdict: str


def measured_calibration(record: RunRecord) -> Calibration | None:
    """Return what card and report both say of the split that was scored; None where it was not measured."""
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
    """Words for mean confidence minus share of right answers, and for the expected calibration error."""
    if abs(gap) > CALIBRATED:
        word = "overconfident" if gap > 0 else "underconfident"
        return f"the model is {word}, by {abs(gap) * 100:.1f} points"
    if error > OFF_IN_PLACES:
        return "calibrated on average, but overconfident on some rows and underconfident on others"
    return "well calibrated"


def confidence_sentences(record: RunRecord) -> list[str]:
    """Return what the techniques temperature_scaling and abstention chose and reached; empty without them."""
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
        sentences.append("config.json says so, and sft-hf goes by it; a plain pipeline does not.")
    return sentences


def _abstention(record: RunRecord, facts: dict[str, Any]) -> str:
    threshold = finite(facts.get("threshold"))
    if threshold is None:
        return "It abstains from every answer: on validation, no confidence was high enough for the error rate wanted."
    parts = [f"It abstains below a confidence of {decimal(threshold)}"]
    for split in ("test", "validation"):
        scores = record.metrics.get(split) or {}
        if finite(scores.get("coverage")) is not None:
            parts.append(f"on {split} it answers {percent(scores['coverage'])} of the rows")
            if finite(scores.get("selective_error")) is not None:
                parts[-1] += f", and {percent(scores['selective_error'])} of these answers are wrong"
    return f"{'; '.join(parts)}."
