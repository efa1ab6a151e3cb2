"""A recipe in, a trained and scored run folder out. Everything that trains calls `finetune`."""

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
    """Train, choose and score a model as the recipe says, into `recipe.output_dir`.

    Args:
        recipe: a recipe, or the name or path of one.
        splits: rows in memory, by role ("train", "validation", "test"), in place of those that `data.name` names.
        outputs: what to write, see `sft_hf.jobs.results.OUTPUTS`.
        callbacks: told what happens while the run trains; see `sft_hf.engine.callbacks`.
        resume: continue from the newest checkpoint in the folder that verifies; "auto": if a run has begun there, else
            start.
        overwrite: replace an existing run in the folder. It is touched only once data and checkpoint have been read.
        other_environment: resume although versions, threads or device differ; the last bits may then, too.

    Raises:
        UserError: bad recipe, data or checkpoint; nothing was changed on the disk.
        TrainingError: a loss or gradient is not finite, or memory does not suffice for a single row.
        StorageError: the disk is full; the last committed checkpoint is intact.
        Terminated: SIGTERM arrived; a checkpoint was committed first.
        KeyboardInterrupt: SIGINT (Ctrl-C) arrived, likewise, so that a program around it stops, too.
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
        checkpoint.clean_up(job.folder.checkpoints, job.recipe.checkpoint.save_total_limit)  # where it died before that
        return finished
    with job:
        job.prepare()
        job.train()
        return job.finish()
