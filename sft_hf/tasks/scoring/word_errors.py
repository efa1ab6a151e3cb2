"""Word and character error rates of transcripts, and the most frequent confusions.

Both rates are the minimum number of substitutions, deletions and insertions that turn the reference into the
prediction, divided by the length of the reference, pooled over all rows: 0 is perfect, and the rate can exceed 1.
Alignments are computed by jiwer (Levenshtein distance; V. Levenshtein, Soviet Physics Doklady 10, 1966); as in jiwer,
the rate for references without words is the number of inserted words.

In the shapes, N is the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import evaluate
import jiwer
import numpy as np
from datasets import Features, Value

from sft_hf.tasks.scoring.classification import _LocalMetric
from sft_hf.tasks.scoring.intervals import bootstrap_ratio_interval

__all__ = [
    "CharacterErrorRate",
    "Edits",
    "WordErrorRate",
    "character_edits",
    "most_frequent_confusions",
    "transcription_metrics",
    "word_edits",
]

MAX_CONFUSIONS = 20
_BLOCK = 10_000  # rows aligned at once


@dataclass(frozen=True)
class Edits:
    """The edits that turn one reference into its prediction.

    `length` is the length of the reference, in words or characters; `pairs` has (reference, prediction) of every edit:
    ("a", "b") is a substitution, ("a", None) a deletion, (None, "b") an insertion.
    """

    length: int
    pairs: tuple[tuple[str | None, str | None], ...]


class _TranscriptMetric(_LocalMetric):
    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)

    def _checked(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        return _checked_texts(predictions, "predictions"), _checked_texts(references, "references", len(predictions))


class WordErrorRate(_TranscriptMetric):
    """Substituted, deleted and inserted words, divided by the words of all references.

    `compute(predictions=[N] texts, references=[N] texts)` returns `{"wer": float}`, >= 0. Words are separated by white
    space; letter case and punctuation count. Raises ValueError for an empty input, a length mismatch, or anything
    other than text.
    """

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return {"wer": _rate(word_edits(references, predictions))}


class CharacterErrorRate(_TranscriptMetric):
    """Substituted, deleted and inserted characters, divided by the characters of all references.

    `compute(predictions=[N] texts, references=[N] texts)` returns `{"cer": float}`, >= 0. White space between words
    counts as one character, and is stripped from both ends. Raises ValueError as `WordErrorRate` does.
    """

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return {"cer": _rate(character_edits(references, predictions))}


def word_edits(references: Sequence[str], predictions: Sequence[str]) -> list[Edits]:
    """Align the words of each prediction with those of its reference; N edits."""
    return _edits(references, predictions, jiwer.process_words)


def character_edits(references: Sequence[str], predictions: Sequence[str]) -> list[Edits]:
    """Align the characters of each prediction with those of its reference; N edits."""
    return _edits(references, predictions, jiwer.process_characters)


def _edits(references: Sequence[str], predictions: Sequence[str], process: Callable[..., Any]) -> list[Edits]:
    result = []
    for start in range(0, len(references), _BLOCK):
        pair = [[" ".join(text.split()) for text in part[start : start + _BLOCK]] for part in (references, predictions)]
        output = process(*pair)
        for reference, prediction, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
            pairs: list[tuple[str | None, str | None]] = []
            for chunk in chunks:
                said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
                written = prediction[chunk.hyp_start_idx : chunk.hyp_end_idx]
                if chunk.type == "substitute":
                    pairs += zip(said, written, strict=True)
                elif chunk.type == "delete":
                    pairs += [(unit, None) for unit in said]
                elif chunk.type == "insert":
                    pairs += [(None, unit) for unit in written]
            result.append(Edits(len(reference), tuple(pairs)))
    return result


def _rate(edits: Sequence[Edits]) -> float:
    return sum(len(row.pairs) for row in edits) / max(1, sum(row.length for row in edits))


def most_frequent_confusions(edits: Sequence[Edits], limit: int = MAX_CONFUSIONS) -> list[dict[str, Any]]:
    """Return the most frequent edits, {"kind", "reference", "prediction", "count"}; ties are sorted by text.

    `kind` is "substitution", "deletion" (prediction None) or "insertion" (reference None).
    """
    counts = Counter(pair for row in edits for pair in row.pairs)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return [
        {"kind": _kind(said, written), "reference": said, "prediction": written, "count": count}
        for (said, written), count in ordered[:limit]
    ]


def _kind(said: str | None, written: str | None) -> str:
    return "insertion" if said is None else "deletion" if written is None else "substitution"


def transcription_metrics(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    normalize: Callable[[str], str] | None = None,
    groups: Sequence[Hashable] | None = None,
    confidence_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of a speech recognizer.

    Args:
        predictions: [N] transcripts.
        references: [N] reference transcripts.
        normalize: removes differences in spelling alone (letter case, punctuation, "twenty" and "20").
        groups: [N] the group of each row (a speaker, an accent), for rates per group.
        confidence_samples: resamples of the bootstrap; 0 leaves intervals, confusions and groups out.
        seed: of the bootstrap.

    Returns:
        `num_examples`, `num_words` (of the references); `wer` and `cer`; with `normalize`, `wer_normalized` and
        `cer_normalized`; `exact_match`, the fraction of rows without errors; `substitutions`, `deletions` and
        `insertions` of words, divided by the number of words, which add up to `wer`; `wer_ci95` and
        `wer_normalized_ci95`, [low, high] by `bootstrap_ratio_interval` over rows; `confusions` (see
        `most_frequent_confusions`), of the normalized words with `normalize`; and `groups`, {group: its num_examples,
        num_words, wer, wer_ci95, and with `normalize` also the normalized rate and interval}.

    Raises:
        ValueError: an empty input, a length mismatch, or anything other than text.
    """
    predictions = _checked_texts(predictions, "predictions")
    references = _checked_texts(references, "references", len(predictions))
    if groups is not None and len(groups) != len(references):
        raise ValueError(f"{len(groups)} groups for {len(references)} rows")
    options = {"samples": confidence_samples, "seed": seed}
    words = word_edits(references, predictions)
    result: dict[str, Any] = {"num_examples": len(references), "num_words": sum(row.length for row in words)}
    result |= {"wer": _rate(words), "cer": _rate(character_edits(references, predictions))}
    result["exact_match"] = float(np.mean([not row.pairs for row in words]))
    kinds = Counter(_kind(*pair) for row in words for pair in row.pairs)
    result |= {f"{kind}s": kinds[kind] / max(1, result["num_words"]) for kind in _KINDS}
    if confidence_samples:
        result["wer_ci95"] = _interval(words, options)
    shown = words
    if normalize is not None:
        plain = [normalize(text) for text in references], [normalize(text) for text in predictions]
        shown = word_edits(*plain)
        result |= {"wer_normalized": _rate(shown), "cer_normalized": _rate(character_edits(*plain))}
        if confidence_samples:
            result["wer_normalized_ci95"] = _interval(shown, options)
    if confidence_samples:
        result["confusions"] = most_frequent_confusions(shown)
        if groups is not None:
            result["groups"] = _by_group(words, groups, "wer", options)
            if normalize is not None:
                for group, figures in _by_group(shown, groups, "wer_normalized", options).items():
                    result["groups"][group] |= {key: figures[key] for key in figures if "normalized" in key}
    return result


_KINDS = ("substitution", "deletion", "insertion")


def _interval(edits: Sequence[Edits], options: dict[str, int]) -> list[float]:
    errors, lengths = [len(row.pairs) for row in edits], [row.length for row in edits]
    if not any(lengths):  # the references have no words: there is no ratio to resample
        return [_rate(edits), _rate(edits)]
    return list(bootstrap_ratio_interval(errors, lengths, **options))


def _by_group(
    edits: Sequence[Edits], groups: Sequence[Hashable], metric: str, options: dict[str, int]
) -> dict[str, dict[str, Any]]:
    rows: dict[Hashable, list[Edits]] = {}
    for group, row in zip(groups, edits, strict=True):
        rows.setdefault(group, []).append(row)
    return {
        str(group): {
            "num_examples": len(own),
            "num_words": sum(row.length for row in own),
            metric: _rate(own),
            f"{metric}_ci95": _interval(own, options),
        }
        for group, own in sorted(rows.items(), key=lambda item: str(item[0]))
    }


def _checked_texts(values: Any, name: str, length: int | None = None) -> list[str]:
    texts = [] if values is None or isinstance(values, str) else list(values)
    if not texts:
        raise ValueError(f"{name} must be [N] texts with N >= 1")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be texts, row {row} is {type(text).__name__}")
    if length is not None and len(texts) != length:
        raise ValueError(f"predictions and references must be of the same length: {length}, {len(texts)}")
    return texts
