"""Run a recipe: train, score and write a run folder. All commands that train call `finetune`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from sft_hf.core import console
from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.engine.callbacks import Callback
from sft_hf.engine.resume import checkpoint
from sft_hf.jobs.job import TrainingJob
from sft_hf.jobs.results import ALL_OUTPUTS, RunResult

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("sft_hf")


def finetune(
    recipe: Recipe | str | os.PathLike[str],
    *,
    splits: Mapping[str, Dataset] | None = None,
    outputs: Collection[str] = ALL_OUTPUTS,
    callbacks: Sequence[Callback] = (),
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    other_environment: bool = False,
) -> RunResult:
    """Fine-tune a model by a recipe, choose its weights on validation, and score it, in `recipe.output_dir`.

    Args:
        recipe: a recipe, or its name or path.
        splits: rows in memory, by role ("train", "validation", "test"), replacing the data of `data.name`.
        outputs: the outputs to write, see `sft_hf.jobs.results.OUTPUTS`.
        callbacks: called during training; see `sft_hf.engine.callbacks`.
        resume: continue from the newest valid checkpoint in the folder; "auto": resume if a run was started there,
            otherwise start.
        overwrite: replace an existing run in the folder, after data and pretrained model have been read.
        other_environment: resume even if versions, threads or device differ; results may differ in the last bits.

    Raises:
        UserError: bad recipe, data or pretrained model; nothing was written.
        TrainingError: a loss or gradient is not finite, or memory does not suffice for a single row.
        StorageError: the disk is full; the last checkpoint is intact.
        Terminated: SIGTERM arrived; a checkpoint was saved first.
        KeyboardInterrupt: SIGINT (Ctrl-C) arrived; a checkpoint was saved first.
    """
    console.show_log()
    job = TrainingJob(
        recipe if isinstance(recipe, Recipe) else load_recipe(os.fspath(recipe)),
        splits=splits,
        outputs=outputs,
        callbacks=callbacks,
        resume=resume,
        overwrite=overwrite,
        other_environment=other_environment,
    )
    if (finished := job.check_folder()) is not None:
        log.info("nothing to resume: the run in %s is finished", job.folder.path)
        checkpoint.clean_up(job.folder.checkpoints, job.recipe.checkpoint.save_total_limit)  # if it was killed before
        return finished
    with job:
        job.prepare()
        job.train()
        return job.finish()
