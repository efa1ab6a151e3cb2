"""The results on a model card: scores, intervals, baselines and calibration."""

from __future__ import annotations

from typing import Any

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.baselines import CLEARLY_BETTER, Baseline, baselines
from sft_hf.publishing.card.markdown import escape, table
from sft_hf.publishing.confidence import confidence_sentences, measured_calibration
from sft_hf.publishing.numbers import (
    LOWER_IS_BETTER,
    REGRESSION,
    UNKNOWN,
    count,
    finite,
    interval,
    metric_name,
    metric_range,
    metric_value,
    percent,
    rows,
)

MOST_CLASSES = 30  # rows of the tables of classes and groups
MOST_CONFUSIONS = 10
METRICS_OF_A_TARGET = ("rmse", "mse", "mae", "r2", "pearson", "spearman")

_TABLE = (
    *("accuracy", "micro_f1", "macro_f1", "map", "subset_accuracy"),
    *("wer", "wer_normalized", "cer", "cer_normalized", "exact_match", "substitutions", "deletions", "insertions"),
    *REGRESSION,
    *("threshold", "loss"),
)


def results(record: RunRecord, noun: str) -> list[str]:
    """Return the paragraphs and tables of the section Results; `noun` is the name of a row."""
    if not record.scores:
        lack = (
            "the test split has no labels, and there was no"
            if record.unlabelled_test
            else "the run had neither a test nor a"
        )
        return [f"This model was not scored: {lack} validation split."]
    parts = [_headline(record, noun), _metrics_table(record), _choices(record)]
    return [*parts, _classes(record), _targets(record), *_speech_tables(record)]


def _headline(record: RunRecord, noun: str) -> str:
    scores, name = record.scores, record.primary
    lower = " (lower is better)" if name in LOWER_IS_BETTER else ""
    sure = _interval_text(name, interval(scores, name))
    number = scores.get("num_examples")
    return (
        f"**{metric_name(name)} {metric_value(name, scores.get(name))}**{lower} on "
        f"{rows(number, f'{record.split} {noun}')}{sure}. {_compared(record)}".strip()
    )


def _interval_text(name: str, pair: tuple[float, float] | None) -> str:
    return f" (95 % interval {metric_range(name, pair)})" if pair else ""


def _compared(record: RunRecord) -> str:
    """Return the baselines, and the verdict on each."""
    found, own = baselines(record), interval(record.scores, record.primary)
    if not found:
        return "There is no baseline to compare it with."
    return " ".join(_against(base, own) for base in found)


def _against(base: Baseline, own: tuple[float, float] | None) -> str:
    value = f"{metric_value(base.metric, base.value)}{_interval_text(base.metric, base.interval)}"
    text = f"For comparison, {escape(base.description, 200)}: {value}."
    if base.sampled:
        text = f"{text[:-1]}; the model on the same rows: {metric_value(base.metric, base.model)}."
    found = base.verdict(own)
    if found is None:
        return text
    said = f"The model is {found}" if found == CLEARLY_BETTER else f"**The model is {found}**"
    return f"{text} {': '.join(filter(None, (said, base.evidence(own))))}."


def _metrics_table(record: RunRecord) -> str:
    splits = [name for name in ("test", "validation") if record.metrics.get(name)]
    scores = {split: record.metrics[split] for split in splits}
    names = [name for name in _TABLE if any(name in scores[split] for split in splits)]
    names.sort(key=lambda name: name != record.primary)
    cells = []
    for name in names:
        values = [f"{metric_value(name, scores[split].get(name))}{_range(scores[split], name)}" for split in splits]
        mean = " (mean of the targets)" if name in METRICS_OF_A_TARGET and "per_target" in record.scores else ""
        cells.append([f"{metric_name(name)}{mean}", *values])
    heads = [f"{split}, {rows(scores[split].get('num_examples'))}" for split in splits]
    return table(["Metric (95 % interval)", *heads], cells)


def _range(scores: dict[str, Any], name: str) -> str:
    pair = interval(scores, name)
    return f" ({metric_range(name, pair)})" if pair else ""


def _choices(record: RunRecord) -> str:
    metrics, recipe = record.metrics, record.recipe
    if "validation" not in metrics:
        return "No choice was made on scored rows: there was no validation split, and these are the last weights."
    chosen = ["the best weights"] if recipe.eval.load_best_model_at_end else []
    chosen += ["when to stop"] if recipe.eval.early_stopping_patience else []
    chosen += ["the decision threshold"] if "threshold" in metrics["validation"] else []
    for_what = f"Validation chose {' and '.join(chosen)}" if chosen else "The run itself chose nothing on validation"
    if "test" in metrics:
        return f"{for_what}; test was scored once, at the end."
    lack = "the test split has no labels" if record.unlabelled_test else "there was no test split"
    return f"{for_what}; {lack}, so expect somewhat worse scores on new data."


def _classes(record: RunRecord) -> str:
    entries = record.scores.get("per_class") or []
    if not entries:
        return ""
    shown, title = entries, f"Per class ({record.split}):"
    if len(entries) > MOST_CLASSES:
        measured = [entry for entry in entries if entry["support"]]
        shown = sorted(measured, key=lambda entry: entry["f1"])[:MOST_CLASSES]
        title = f"The {len(shown)} worst of {count(len(entries))} classes by F1, of those with {record.split} rows:"
    cells = [
        [
            escape(entry["label"]),
            *(_measured(entry, name) for name in ("precision", "recall", "f1")),
            count(entry["support"]),
        ]
        for entry in shown
    ]
    return f"{title}\n\n{table(['Label', 'Precision', 'Recall', 'F1', 'Rows'], cells)}"


def _targets(record: RunRecord) -> str:
    """Return the metrics of each target, if there are several."""
    entries = record.scores.get("per_target") or []
    if not entries:
        return ""
    names = ("rmse", "mae", "r2", "pearson", "spearman")
    cells = [
        [escape(entry["target"]), *(f"{metric_value(name, entry.get(name))}{_range(entry, name)}" for name in names)]
        for entry in entries
    ]
    return f"Per target ({record.split}; 95 % interval):\n\n{table(['Target', *map(metric_name, names)], cells)}"


def _measured(entry: dict[str, Any], name: str) -> str:
    """Return a metric of a class as text; without rows, recall and F1 are 0 by convention and are left out."""
    return percent(entry[name]) if entry["support"] else UNKNOWN


def _speech_tables(record: RunRecord) -> list[str]:
    scores = record.scores
    return [_groups(record.split, scores.get("groups") or {}), _confusions(record.split, scores)]


def _groups(split: str, groups: dict[str, dict[str, Any]]) -> str:
    if not groups:
        return ""
    worst = sorted(groups, key=lambda name: -(finite(groups[name].get("wer")) or 0.0))[:MOST_CLASSES]
    shown = [name for name in groups if name in worst]
    title = f"Per group ({split}; 95 % interval):"
    if len(groups) > len(shown):
        title = f"The {len(shown)} groups of {count(len(groups))} with the most errors ({split}; 95 % interval):"
    names = [name for name in ("wer", "wer_normalized") if any(name in groups[group] for group in shown)]
    cells = []
    for group in shown:
        figures = groups[group]
        rates = [f"{metric_value(name, figures.get(name))}{_range(figures, name)}" for name in names]
        cells.append([escape(group), count(figures["num_examples"]), count(figures["num_words"]), *rates])
    return f"{title}\n\n{table(['Group', 'Recordings', 'Words', *map(metric_name, names)], cells)}"


def _confusions(split: str, scores: dict[str, Any]) -> str:
    """Return word errors that occurred more than once; a single one is not a pattern."""
    often = [entry for entry in scores.get("confusions") or [] if entry["count"] > 1]
    if not often:
        return ""
    often.sort(key=lambda entry: -entry["count"])
    cells = [
        [_word(entry["reference"]), _word(entry["prediction"]), count(entry["count"])]
        for entry in often[:MOST_CONFUSIONS]
    ]
    normalized = ", normalized" if "wer_normalized" in scores else ""
    return f"Most frequent word errors ({split}{normalized}):\n\n{table(['Said', 'Written', 'Times'], cells)}"


def _word(word: Any) -> str:
    return "(nothing)" if word is None else escape(word)


# --- calibration -------------------------------------------------------------------------------------------------


def calibration(record: RunRecord) -> list[str]:
    """Return the section Calibration; empty if it was not measured."""
    found = measured_calibration(record)
    if found is None:
        return []
    top = found.bins[-1]
    confidence, share = {
        "wer": ("mean confidence, which is one per token,", "of the transcripts are without any error"),
        "micro_f1": ("mean confidence in a row's likeliest label", "of these labels are right"),
    }.get(record.primary, ("mean confidence", "of the answers are right"))
    text = (
        f"On {rows(found.count, f'{record.split} row')} the {confidence} is {percent(found.confidence)}, and "
        f"{percent(found.accuracy)} {share}: {found.verdict}. Of the {rows(top['count'], 'answer')} with a confidence "
        f"above {percent(top['low'])}, {percent(top['accuracy'])} are right. Expected calibration error: "
        f"{percent(found.error)} (15 bins)."
    )
    return ["## Calibration", text, " ".join(confidence_sentences(record))]
