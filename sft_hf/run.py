"""The one assembler: a recipe in, a trained and scored run folder out. Everything else calls `finetune`."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from torch import Tensor

from sft_hf import checkpoint, process
from sft_hf.data.batching import padding_waste
from sft_hf.data.loading import Splits, load_splits
from sft_hf.data.splits import fill_missing_splits, limit_splits
from sft_hf.data.training_data import BatchSizes, Stream, WholeSet
from sft_hf.errors import RecipeError, did_you_mean
from sft_hf.evaluation import predict
from sft_hf.loop import Training, TrainState, train
from sft_hf.models.loading import pin
from sft_hf.optimization import build_optimizer, build_scheduler
from sft_hf.recipe import Recipe
from sft_hf.registry import load_component
from sft_hf.run_folder import RunFolder
from sft_hf.sources import resolve
from sft_hf.tasks.base import Examples, Task

log = logging.getLogger("sft_hf")

CONFIDENCE_SAMPLES = 1000


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and what metrics.json holds."""

    output_dir: Path
    metrics: dict[str, Any]


def finetune(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Train, choose and score a model as the recipe says, into `recipe.output_dir`.

    Args:
        resume: continue from the newest checkpoint in the folder that verifies.
        overwrite: replace a run that stands in the folder. It is touched only once data and checkpoint have been read.

    Raises:
        UserError: bad recipe, data or checkpoint; nothing was changed on the disk.
        TrainingError: a loss or gradient is not finite.
        StorageError: the disk is full; the last committed checkpoint is intact.
    """
    started = time.perf_counter()
    folder = RunFolder(Path(recipe.output_dir or "runs/run"))
    folder.refuse_if_taken(resume, overwrite)
    if resume:
        folder.refuse_other_recipe(recipe)
    accelerator = process.build_accelerator(recipe.train.mixed_precision, recipe.train.num_threads)
    run = _Run(recipe, folder, accelerator)
    run.prepare()
    if accelerator.is_main_process and not resume:
        folder.start(recipe)
    accelerator.wait_for_everyone()
    state = run.restore() if resume else TrainState()
    train(run.training, state)
    return run.finish(state, started)


class _Run:
    """What a run puts together, step by step, and what the loop calls back."""

    def __init__(self, recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.task: Task[Any] = load_component("tasks", recipe.task.name)(recipe)
        self.examples: dict[str, Examples] = {}

    def prepare(self) -> None:
        """Read everything there is to read, and build model, optimizer and schedule. Nothing is written."""
        recipe, task = self.recipe, self.task
        model_source = pin(  # before the data, which may take long to come
            resolve(
                recipe.model.name,
                revision=recipe.model.revision,
                sha256=recipe.model.sha256,
                what="checkpoint",
                key="model",
            )
        )
        splits = load_data(recipe, task, model_source)
        self.data_revision = splits.revision
        self.data = self._training_data(splits)
        for role in ("validation", "test"):
            if role in splits.by_role:
                self.examples[role] = self._prepare_split(splits.by_role[role], splits.where[role])
        self.metric = self._metric_for_best_model()
        set_seed(recipe.seed)  # the new head's weights
        self.source = model_source
        self.training = self._training(task.build_model(model_source, recipe.model))

    def _prepare_split(self, split: Dataset, where: str) -> Examples:
        examples = self.task.prepare(split, where)
        for note in examples.notes:
            log.info("%s", note)
        return examples

    def _training_data(self, splits: Splits) -> WholeSet | Stream:
        train, section, where = splits.by_role["train"], self.recipe.train, splits.where["train"]
        sizes = BatchSizes(
            section.per_device_train_batch_size,
            section.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.recipe.seed,
            section.group_by_length,
        )
        if isinstance(train, IterableDataset):
            if not section.max_steps:
                raise RecipeError("data.streaming: a stream has no known length; set train.max_steps")
            return Stream(
                train,
                self.recipe.data.stream_buffer_size,
                lambda rows: self.task.prepare(rows, where),
                sizes,
                where,
            )
        data = WholeSet(self._prepare_split(train, where), sizes)
        batches = [micro.rows for window in data.epoch(0)[1] for rank in window.micro_batches for micro in rank]
        log.info("padding: %.1f%% of the training positions", 100 * padding_waste(data.examples.lengths, batches))
        return data

    def _metric_for_best_model(self) -> str | None:
        wanted, known = self.recipe.eval.metric_for_best_model, self.task.metric_names()
        if wanted and wanted not in known:
            raise RecipeError(f"eval.metric_for_best_model: no metric {wanted!r}; {did_you_mean(wanted, known)}")
        if "validation" not in self.examples:
            if self.recipe.eval.early_stopping_patience:
                raise RecipeError("eval.early_stopping_patience: there is no validation split to watch")
            return None
        return wanted or self.task.primary_metric

    def _training(self, model: Any) -> Training:
        recipe = self.recipe
        per_epoch = self.data.steps_per_epoch if isinstance(self.data, WholeSet) else None
        if recipe.train.max_steps or per_epoch is None:
            num_steps = recipe.train.max_steps or 0
        else:
            num_steps = max(1, math.ceil(recipe.train.num_train_epochs * per_epoch))
        optimizer = build_optimizer(model, recipe.optim)
        scheduler = build_scheduler(optimizer, recipe.optim, num_steps)
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        return Training(
            recipe=recipe,
            task=self.task,
            model=prepared,
            optimizer=optimizer,
            scheduler=scheduler,
            accelerator=self.accelerator,
            data=self.data,
            num_steps=num_steps,
            log=self._log,
            evaluate=self._evaluate,
            save=self._save,
        )

    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.training.model)

    def _log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.folder.append_log(line)

    def _evaluate(self, state: TrainState) -> bool:
        """Score validation; keep the weights if they are the best so far; say whether to stop early."""
        if self.metric is None:
            return False
        outputs = self._outputs(self.training.model, "validation", autocast=True)
        self.task.tune(outputs, self.examples["validation"])
        metrics = self.task.score(outputs, self.examples["validation"])
        value = metrics[self.metric]
        better = state.best_metric is None or (
            value < state.best_metric if self.metric in self.task.lower_is_better else value > state.best_metric
        )
        if better:
            state.best_metric, state.best_step, state.evaluations_without_improvement = value, state.step, 0
            if self.recipe.eval.load_best_model_at_end and self.accelerator.is_main_process:
                checkpoint.save_best(self.folder.checkpoints, self._plain_model())
        else:
            state.evaluations_without_improvement += 1
        self._log(
            {"step": state.step}
            | {f"eval_{name}": value for name, value in metrics.items() if isinstance(value, float)}
        )
        log.info(
            "step %d/%d: train loss %.4f, validation loss %.4f, %s %.4f%s",
            state.step,
            self.training.num_steps,
            state.loss,
            metrics["loss"],
            self.metric,
            value,
            " (best so far)" if better else "",
        )
        patience = self.recipe.eval.early_stopping_patience
        stop = patience is not None and state.evaluations_without_improvement >= patience
        if stop:
            log.info("stopping early: %d evaluations without a better %s", patience, self.metric)
        return stop

    def _outputs(self, model: Any, role: str, autocast: bool) -> dict[str, Tensor]:
        return predict(
            self.task,
            model,
            self.examples[role],
            self.accelerator,
            batch_size=self.recipe.eval.per_device_eval_batch_size,
            description=f"evaluating {role}",
            autocast=autocast,
        )

    def _save(self, state: TrainState) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save_checkpoint(
                self.folder.checkpoints,
                state.step,
                self._plain_model(),
                self.training.optimizer,
                {"train_state": state.to_json(), "scheduler": self.training.scheduler.state_dict()},
                keep=self.recipe.checkpoint.save_total_limit,
            )
        self.accelerator.wait_for_everyone()

    def restore(self) -> TrainState:
        """Load the newest checkpoint that verifies; with none, start from the beginning."""
        found, passed_over = checkpoint.newest_checkpoint(self.folder.checkpoints)
        for sentence in passed_over:
            log.warning("%s; trying the one before", sentence)
        if found is None:
            log.info("no checkpoint yet: starting from the first step")
            state = TrainState()
        else:
            saved = checkpoint.load_checkpoint(found, self._plain_model(), self.training.optimizer)
            self.training.scheduler.load_state_dict(saved["scheduler"])
            state = TrainState.from_json(saved["train_state"])
            log.info("resuming from %s", found.name)
        if self.accelerator.is_main_process:
            self.folder.trim_log(state.step)
        return state

    def finish(self, state: TrainState, started: float) -> RunResult:
        """Score the chosen weights, test once, and write the results."""
        # Without the mixed-precision wrapper: scored are the numbers that anyone gets who opens the saved model.
        model = self.accelerator.unwrap_model(self.training.model, keep_fp32_wrapper=False)
        if self.recipe.eval.load_best_model_at_end and state.best_step not in (None, state.step):
            checkpoint.load_best(self.folder.checkpoints, model)
            log.info("kept the weights of step %d, the best on validation", state.best_step)
        scores, predictions = {}, []
        for role, examples in self.examples.items():  # validation before test
            outputs = self._outputs(model, role, autocast=False)
            if role == "validation":
                self.task.tune(outputs, examples)
            scores[role] = self.task.score(outputs, examples, CONFIDENCE_SAMPLES)
            predictions = prediction_rows(self.task, outputs, examples)
        metrics = self._metrics(state, model, scores, started)
        if self.accelerator.is_main_process:
            self.folder.write_results(lambda path: self.task.save(model, path), metrics, predictions)
        self.accelerator.wait_for_everyone()
        return RunResult(self.folder.path, metrics)

    def _metrics(self, state: TrainState, model: Any, scores: dict[str, Any], started: float) -> dict[str, Any]:
        parameters = list(model.parameters())
        epochs = state.examples_seen / len(self.data.examples) if isinstance(self.data, WholeSet) else None
        return {
            "task": self.recipe.task.name,
            "primary_metric": self.task.primary_metric,
            **{role: scores[role] for role in ("test", "validation") if role in scores},
            "train": {
                "runtime_seconds": round(state.seconds, 3),
                "total_seconds": round(time.perf_counter() - started, 3),
                "examples_per_second": round(state.examples_seen / max(state.seconds, 1e-9), 3),
                "num_steps": state.step,
                "num_epochs": None if epochs is None else round(epochs, 4),
                "num_examples": len(self.data.examples) if isinstance(self.data, WholeSet) else None,
                "final_loss": state.loss,
                "best_step": state.best_step,
                "peak_memory_bytes": process.peak_memory_bytes(self.accelerator.device),
            },
            "model": {
                "name": self.recipe.model.name,
                "revision": self.source.revision,
                "num_parameters": sum(parameter.numel() for parameter in parameters),
                "num_trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            },
            "data": {"name": self.recipe.data.name, "revision": self.data_revision},
            "environment": process.environment(self.accelerator),
            "seed": self.recipe.seed,
        }


def load_data(recipe: Recipe, task: Task[Any], model_source: Any | None) -> Splits:
    """Load the splits, fit the task on all of train (given a checkpoint), hold out what is missing, limit rows."""
    data = recipe.data
    source = resolve(data.name, revision=data.revision, sha256=data.sha256, what="data set", key="data")
    splits = load_splits(data, source, task.columns())
    if model_source is not None:
        task.fit(splits.by_role["train"], splits.where["train"], model_source)
    splits = limit_splits(fill_missing_splits(splits, data), data)
    for note in splits.notes:
        log.info("%s", note)
    sizes = {role: len(split) for role, split in splits.by_role.items() if isinstance(split, Dataset)}
    log.info("rows: %s", ", ".join(f"{role} {size}" for role, size in sizes.items()) or "a stream")
    return splits


def prediction_rows(task: Task[Any], outputs: dict[str, Tensor], examples: Examples) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl: row id, reference, prediction, confidence."""
    return [
        {"id": int(row_id), "reference": task.reference(reference), **decoded}
        for row_id, reference, decoded in zip(examples.row_ids, examples.references, task.decode(outputs), strict=True)
    ]
