"""Save and restore the state of a run."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from sft_hf.core.run.folder import RunFolder
from sft_hf.core.sources.sources import Source
from sft_hf.data.fingerprint import fingerprint
from sft_hf.data.loading.media import MEDIA_KEYS
from sft_hf.data.loading.roles import Splits
from sft_hf.engine import process
from sft_hf.engine.resume import checkpoint
from sft_hf.engine.resume.identity import check_identity, identity_of
from sft_hf.engine.state import Training, TrainState

log = logging.getLogger("sft_hf")


class RunState:
    """Saves and restores the state of training. Rank 0 writes; if that fails, all ranks raise."""

    def __init__(self, training: Training, folder: RunFolder, splits: Splits, source: Source) -> None:
        self.training, self.folder, self.splits, self.source = training, folder, splits, source
        self.recipe, self.task, self.accelerator = training.recipe, training.task, training.accelerator

    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.training.model)

    def _on_main(self, action: Any, *arguments: Any, **options: Any) -> None:
        process.on_main_process(self.accelerator, lambda: action(*arguments, **options))

    def save_best(self, step: int) -> None:
        """Save the current weights as the best so far. Raises StorageError."""
        self._on_main(checkpoint.save_best, self.folder.checkpoints, step, self._plain_model())

    def save(self, state: TrainState) -> None:
        """Save a checkpoint. Raises StorageError."""
        self._on_main(
            checkpoint.save_checkpoint,
            self.folder.checkpoints,
            state.step,
            self._plain_model(),
            self.training.optimizer,
            {
                "train_state": state.to_json(),
                "scheduler": self.training.scheduler.state_dict(),
                "identity": self._identity(),
            },
            techniques=self.training.techniques.state_dict(),
            best_step=state.best_step if self.recipe.eval.load_best_model_at_end else None,
            keep=self.recipe.checkpoint.save_total_limit,
        )

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        columns = self.task.reader.loaded_columns()
        files = [column for key, column in columns.items() if key in MEDIA_KEYS]
        return {
            role: fingerprint(split, list(columns.values()), files)
            for role, split in self.splits.by_role.items()
            if isinstance(split, Dataset)
        }

    def _identity(self) -> dict[str, Any]:
        return identity_of(
            recipe=self.recipe.model_dump(mode="json"),
            data=self._fingerprints,
            task=self.task.identity(),
            model_revision=self.source.revision,
            environment=process.environment(self.accelerator),
        )

    def restore(self, other_environment: bool) -> TrainState:
        """Load the newest valid checkpoint and log which one; without any, start from the beginning.

        Raises RunFolderError for a checkpoint of other data, labels or processes, and for one of another environment
        unless `other_environment`.
        """
        found = self._choose_checkpoint()
        if found is None:
            log.info("no usable checkpoint: starting from the first step")
            state = TrainState()
        else:
            identity = checkpoint.read_state(found).get("identity")
            for difference in check_identity(
                identity, self._identity(), str(found), other_environment=other_environment
            ):
                log.warning("resuming with another environment: %s; the last bits may differ", difference)
            with checkpoint.fitting(found):
                saved = checkpoint.load_checkpoint(found, self._plain_model(), self.training.optimizer)
                self.training.scheduler.load_state_dict(saved["scheduler"])
                state = TrainState.from_json(saved["train_state"])
            self.training.techniques.load_state_dict(checkpoint.load_techniques(found))
            log.info(
                "resuming from %s: the newest of %d checkpoint(s) that passes verification (size and SHA-256 of every "
                "file); step %d of %d",
                found.name,
                len(checkpoint.list_checkpoints(self.folder.checkpoints)),
                state.step,
                self.training.num_steps,
            )
        self._on_main(checkpoint.set_aside, self.folder.checkpoints, found)
        self._on_main(self.folder.go_back_to, state.step, state.awaiting_evaluation)
        return state

    def _choose_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, verified and chosen by rank 0."""
        chosen = -1

        def choose() -> None:
            nonlocal chosen
            found, passed_over = checkpoint.newest_checkpoint(self.folder.checkpoints)
            for sentence in passed_over:
                log.warning("%s; trying the one before", sentence)
            chosen = -1 if found is None else int(found.name[5:])

        self._on_main(choose)
        if self.accelerator.num_processes > 1:
            number = torch.tensor(chosen if self.accelerator.is_main_process else 0, device=self.accelerator.device)
            chosen = int(process.sum_over_ranks(number, self.accelerator))
        return None if chosen < 0 else self.folder.checkpoints / f"step-{chosen:06d}"
