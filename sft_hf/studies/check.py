"""`sft-hf check`: find problems before training."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sft_hf.core import signals
from sft_hf.core.errors import RunFolderError, SftError
from sft_hf.core.filesystem import free_bytes, human_bytes
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.data.examples import Examples
from sft_hf.data.tables.bad_rows import SKIPPED
from sft_hf.engine import process
from sft_hf.engine.batches import StepBatch
from sft_hf.engine.epochs import InMemoryEpochs
from sft_hf.engine.resume import checkpoint
from sft_hf.engine.state import TrainState
from sft_hf.engine.step import train_step
from sft_hf.jobs.job import TrainingJob
from sft_hf.models.freezing import set_modes
from sft_hf.publishing.hub.access import write_access


@dataclass
class Report:
    """The findings of a check, one line each."""

    passed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[SftError] = field(default_factory=list)


def check(recipe: Recipe, *, push_to: str | None = None) -> Report:
    """Prepare a run like `finetune`, take one step on its longest rows, save once, and leave no files behind.

    Args:
        recipe: the recipe to check.
        push_to: a Hub repository to check for write access.

    Raises UserError for a problem that stops preparation; later problems are in the report.
    """
    report = Report()
    run = TrainingJob(recipe)
    with signals.listening():
        run.prepare()
        notes = list(run.splits.notes)
        later = [note for split in run.examples.values() for note in split.notes]
        if isinstance(run.data, InMemoryEpochs):
            later += run.data.examples.notes
        skipped = [note for note in (*notes, *later) if SKIPPED in note]
        which = "rows can be used, except for the skipped ones" if skipped else "every row can be used"
        report.passed.append(f"recipe, model and data: {which}")
        report.warnings += skipped
        report.passed += [note for note in notes if note not in skipped]
        for finding in run.findings:
            (report.warnings if finding.level == "warning" else report.passed).append(finding.text)
        report.passed += [note for note in later if note not in skipped]
        report.passed += _lengths(run)
        for part in (_folder, _longest_step, _trial_save):
            signals.poll()
            _collect(report, part, run)
    if push_to is None and recipe.push_to_hub:
        push_to = run.repo_id
    if push_to is not None:
        _collect(report, _hub_access, push_to)
    return report


def _collect(report: Report, part: Callable[[Any], tuple[str, str | None]], subject: Any) -> None:
    """Run a part of the check, and add its line, warning or error to the report."""
    try:
        line, warning = part(subject)
    except SftError as error:
        report.problems.append(error)
        return
    report.passed.append(line)
    if warning:
        report.warnings.append(warning)


def _lengths(run: TrainingJob) -> list[str]:
    lines = []
    for role, split in run.all_examples().items():
        if len(split) and split.lengths.max() > split.lengths.min():
            half, most, longest = (int(value) for value in np.quantile(split.lengths, [0.5, 0.95, 1.0]))
            lines.append(f"{role}: {len(split)} rows; length: median {half}, p95 {most}, max {longest}")
        else:
            lines.append(f"{role}: {len(split)} rows")
    return lines


def _folder(run: TrainingJob) -> tuple[str, str | None]:
    try:
        run.folder.refuse_if_taken(resume=False, overwrite=False)
    except RunFolderError as error:
        return f"run folder: {run.folder.path}", str(error)
    return f"run folder: {run.folder.path} can be used", None


def longest_step(run: TrainingJob) -> tuple[Examples, StepBatch]:
    """Return the step of the first epoch with the largest forward pass."""
    examples, plan = run.training.data.epoch(0)
    lengths = examples.lengths

    def cost(step_batch: StepBatch) -> float:
        passes = [micro.rows for rank in step_batch.micro_batches for micro in rank]
        return max(float(lengths[list(rows)].max()) * len(rows) for rows in passes)

    return examples, max(plan, key=cost)


def _longest_step(run: TrainingJob) -> tuple[str, str | None]:
    """Take one step on the longest rows, and report its time and peak memory."""
    examples, step_batch = longest_step(run)
    state, size = TrainState(), run.recipe.train.per_device_train_batch_size
    set_modes(run.training.model)
    started = time.perf_counter()
    result = train_step(run.training, examples, step_batch, state)
    seconds = time.perf_counter() - started
    memory = human_bytes(process.peak_memory_bytes(run.accelerator.device))
    line = (
        f"one update on the {result.rows} longest rows: {seconds:.1f} s, peak memory {memory}, loss {result.loss:.3f}"
    )
    if not state.oom_splits:
        return line, None
    return (
        line,
        f"train.per_device_train_batch_size: {size} rows do not fit into memory at once; the run would use fewer",
    )


def _trial_save(run: TrainingJob) -> tuple[str, str | None]:
    """Save a checkpoint on the file system of the run folder, read it back, and delete it."""
    parent = run.folder.path
    while not parent.is_dir():
        parent = parent.parent
    try:
        work = Path(tempfile.mkdtemp(prefix=".check-", dir=parent))
    except OSError as error:
        raise RunFolderError(
            f"{parent}: cannot be written to ({error.strerror}); choose another --output-dir"
        ) from None
    try:
        started = time.perf_counter()
        kept = run.techniques.state_dict()
        saved = checkpoint.save_checkpoint(work, 1, run.training.model, run.training.optimizer, {}, techniques=kept)
        seconds = time.perf_counter() - started
        if problem := checkpoint.verify(saved):
            raise SftError(f"{parent}: a checkpoint written there came back damaged: {problem}")
        one = sum(path.stat().st_size for path in saved.iterdir())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    free, most = free_bytes(parent), checkpoint.expected_bytes(run.training.model, kept)[1]
    most += (run.recipe.checkpoint.save_total_limit - 1) * one
    line = (
        f"a checkpoint: {human_bytes(one)}, saved in {seconds:.1f} s; {human_bytes(free)} free for {human_bytes(most)}"
    )
    if free < most:
        return line, f"{parent}: {human_bytes(free)} are free, and the run may need {human_bytes(most)}"
    return line, None


def _hub_access(repository: str) -> tuple[str, str | None]:
    """Raise UserError unless the user's token can write to a repository, or create it."""
    access = write_access(repository)
    can = "can be written to" if access.exists else "does not exist yet and can be created"
    return f"Hub: {access.repo_id} {can}", None
