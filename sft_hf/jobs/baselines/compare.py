"""Compare a trained model with baselines that need no fine-tuning, on the same rows.

The baselines are the most frequent label; logistic regression on words (texts) or on the pretrained model's features
(images); and the pretrained model itself (speech). They are scored on the same split as the model, and nothing is
tuned on it. Together they may take a tenth of the run's time; a baseline that would take longer is computed on a
sample, which its description states.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sft_hf.core import console
from sft_hf.core.errors import RecipeError, TrainingError
from sft_hf.engine.process import is_out_of_memory
from sft_hf.jobs.baselines.base import Baseline, Budget, Clock, Run
from sft_hf.jobs.baselines.kinds import LEAST_FITTED, frozen_probe, most_frequent, read_texts, untrained, words
from sft_hf.publishing.baselines import read_baseline, verdict
from sft_hf.publishing.numbers import NO_BREAK
from sft_hf.tasks.scoring.paired import Difference, paired_difference

log = logging.getLogger("sft_hf")

SHARE = 0.1  # of the run's time

Maker = Callable[[Run, Budget], Baseline | None]


def baseline_metrics(run: Run, seconds: float, clock: Clock = time.perf_counter) -> list[dict[str, Any]]:
    """Return `baselines` of metrics.json; the first of them is also its `baseline`.

    Each has `name`, `description`, `split`, `metrics` (the primary one, with its interval) and `num_examples`. If
    predictions can be compared row by row, it also has `model` (the model's primary metric on the same rows) and
    `difference` (model minus baseline, see `sft_hf.tasks.scoring.paired`) with the `verdict` of
    `sft_hf.publishing.baselines`. Logs a warning if the model scores worse.

    Args:
        run: the trained run.
        seconds: duration of the run; `SHARE` of it may be used.
        clock: returns the time in seconds.

    Raises:
        RecipeError: the recipe requests a probe that cannot be computed.
        Terminated: a signal arrived.
    """
    kind = run.recipe.eval.baseline
    if kind == "none":
        return []
    asked = [partial(frozen_probe, least=LEAST_FITTED)] if kind == "probe" else []
    cheap = [] if run.task.answers_untrained() else [most_frequent(run)]
    makers: list[Maker] = [*asked, *(_tried(make) for make in _usual(run) if not (asked and make is frozen_probe))]
    found: list[Baseline | None] = []
    budget = seconds * SHARE
    for number, make in enumerate(makers):
        started = clock()
        with console.working("computing a baseline"):
            found.append(make(run, Budget(budget / (len(makers) - number), run.accelerator, clock)))
        budget = max(0.0, budget - (clock() - started))
    ordered = [*found, *cheap] if asked else [*cheap, *found]
    return [_entry(run, baseline) for baseline in ordered if baseline is not None]


def _usual(run: Run) -> list[Maker]:
    """Return the baselines of `auto` that take time."""
    if run.task.answers_untrained():
        return [untrained]
    if run.train is None or run.task.scorer.label_counts(run.train.references) is None:
        return []
    return [frozen_probe if read_texts(run, run.split) is None else words]


def _tried(make: Maker) -> Maker:
    """Skip a baseline that fails: one that was not requested must not end a run whose model is trained."""

    def tried(run: Run, budget: Budget) -> Baseline | None:
        try:
            return make(run, budget)
        except (RecipeError, TrainingError) as error:
            log.info("baseline skipped: %s", error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.info("baseline skipped: out of memory")
        return None

    return tried


def _entry(run: Run, baseline: Baseline) -> dict[str, Any]:
    primary, number, total = run.task.scorer.primary_metric, len(baseline.rows), len(run.scored)
    sampled = [*baseline.sampled, *([f"{number:,} of {total:,} {run.split} rows"] if number < total else [])]
    description = baseline.description + (f" (on {' and '.join(sampled)}, to save time)" if sampled else "")
    compared = [key for name in run.task.scorer.compared_metrics() for key in (name, f"{name}_ci95")]
    kept = {key: baseline.metrics[key] for key in compared if key in baseline.metrics}
    log.info("baseline, %s: %s %s %.4f", description, run.split, primary, kept[primary])
    entry: dict[str, Any] = {"name": baseline.name, "description": description, "split": run.split}
    entry |= {"metrics": kept, "num_examples": number}
    if (difference := _difference(run, baseline)) is not None:
        found = verdict(primary, difference.value, difference.p_value)
        entry |= {"model": {primary: difference.first}, "difference": {**difference.to_json(), "verdict": found}}
        base = read_baseline(entry, primary, {})
        if base is not None and (worse := base.if_worse(None)) is not None:
            log.warning("%s", worse.replace("The model", "the model", 1).replace(NO_BREAK, " ").removesuffix("."))
    return entry


def _difference(run: Run, baseline: Baseline) -> Difference | None:
    if baseline.predictions is None:
        return None
    rows = [run.answers[row] for row in baseline.rows.tolist()]
    references, answers = ([row[key] for row in rows] for key in ("reference", "prediction"))
    return paired_difference(run.task.scorer.primary_metric, references, answers, baseline.predictions)
