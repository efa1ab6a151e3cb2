"""What was made of a model's confidence after training, in sentences: scaled, and too little of it for an answer."""

from __future__ import annotations

from typing import Any

from sft_hf.publishing.numbers import decimal, finite, percent
from sft_hf.run_record import RunRecord


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
