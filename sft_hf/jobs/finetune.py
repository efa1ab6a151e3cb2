"""The one assembler: a recipe in, a trained and scored run folder out. Everything else calls `finetune`."""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from sft_hf.core import console, signals
from sft_hf.core.errors import RecipeError, StorageError, Terminated, UserError, did_you_mean
from sft_hf.core.filesystem import committed_folder, free_bytes, human_bytes
from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.core.run.folder import RunFolder
from sft_hf.core.run.record import RunRecord, with_references
from sft_hf.core.sources.sources import resolve_section
from sft_hf.data.examples import Examples
from sft_hf.data.findings import Finding
from sft_hf.engine import process, selection
from sft_hf.engine.epochs import WholeSet
from sft_hf.engine.evaluation import batch_sizes, predict
from sft_hf.engine.frozen_features.build import with_prefix_cache
from sft_hf.engine.loop import train
from sft_hf.engine.optimization import build_optimizer, build_scheduler, check_optimizer, schedule
from sft_hf.engine.resume import checkpoint
from sft_hf.engine.resume.run_state import RunState
from sft_hf.engine.state import Training, TrainState
from sft_hf.engine.technique_stack import TechniqueStack
from sft_hf.jobs.baselines.base import Run as BaselineRun
from sft_hf.jobs.baselines.compare import baseline_metrics
from sft_hf.jobs.inputs import data_findings, load_data, prepare_split, training_data
from sft_hf.jobs.overview import data_overview
from sft_hf.jobs.reporting import report_page
from sft_hf.jobs.results import prediction_rows, run_metrics, write_adapter, write_card
from sft_hf.jobs.trackers import Trackers, check_installed
from sft_hf.models.adapters.attach import attach
from sft_hf.models.adapters.files import savable
from sft_hf.models.adapters.settings import check_adapter
from sft_hf.models.freezing import freeze
from sft_hf.models.head_rate import with_head_scale
from sft_hf.models.loading import pin
from sft_hf.models.quantization import check_quantization
from sft_hf.models.speed import speed_up
from sft_hf.publishing.hub.access import check_access
from sft_hf.publishing.hub.push import push
from sft_hf.tasks.base import Task, task_class
from sft_hf.tasks.scoring.intervals import CONFIDENCE_SAMPLES
from sft_hf.techniques.base import Context

log = logging.getLogger("sft_hf")


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, what metrics.json holds, and where it was pushed to."""

    output_dir: Path
    metrics: dict[str, Any]
    hub_url: str | None = None


def finetune(
    recipe: Recipe | str | os.PathLike[str],
    *,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    other_environment: bool = False,
) -> RunResult:
    """Train, choose and score a model as the recipe says, into `recipe.output_dir`.

    Args:
        recipe: a recipe, or the name or path of one.
        resume: continue from the newest checkpoint in the folder that verifies; "auto": if a run has begun there, else
            start.
        overwrite: replace a run that stands in the folder. It is touched only once data and checkpoint have been read.
        other_environment: resume although versions, threads or device differ; the last bits may then, too.

    Raises:
        UserError: bad recipe, data or checkpoint; nothing was changed on the disk.
        TrainingError: a loss or gradient is not finite, or memory does not suffice for a single row.
        StorageError: the disk is full; the last committed checkpoint is intact.
        Terminated: SIGTERM arrived; a checkpoint was committed first.
        KeyboardInterrupt: SIGINT (Ctrl-C) arrived, likewise, so that a program around it stops, too.
    """
    started = time.perf_counter()
    console.show_log()
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(os.fspath(recipe))
    folder = RunFolder(Path(recipe.output_dir or "runs/run"))
    folder.refuse_if_taken(resume, overwrite)
    resume = folder.has_begun() if resume == "auto" else resume
    if resume:
        folder.refuse_other_recipe(recipe)
        if (metrics := folder.finished()) is not None:
            log.info("nothing to resume: the run in %s is finished", folder.path)
            checkpoint.clean_up(folder.checkpoints, recipe.checkpoint.save_total_limit)  # where it died before that
            return RunResult(folder.path, metrics)
    accelerator = process.build_accelerator(recipe.train.mixed_precision, recipe.train.num_threads)
    run = _Run(recipe, folder, accelerator)
    with signals.listening():
        try:
            process.on_main_process(accelerator, folder.lock.acquire)
            _prepare(run)
            run.trackers.start(in_the_run_folder=False)
            if not resume:
                process.on_main_process(accelerator, lambda: folder.start(recipe, overwrite))
            run.trackers.start(in_the_run_folder=True)
            state = run.run_state.restore(other_environment) if resume else TrainState()
            train(with_prefix_cache(run.training, state), state)
            return run.finish(state, started)
        finally:
            run.trackers.finish()
            folder.lock.release()


def _prepare(run: _Run) -> None:
    try:
        run.prepare()
        signals.poll()
    except (UserError, Terminated):
        if signals.requested():  # and a download that the same signal has ended is no mistake of the user's
            raise Terminated("stopped by a signal before the first step; nothing was written") from None
        raise


class _Run:
    """What a run puts together, step by step, and what the loop calls back."""

    def __init__(self, recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.task: Task[Any] = task_class(recipe)(recipe)
        self.examples: dict[str, Examples] = {}
        self.trackers = Trackers(recipe, folder.path, accelerator)
        self.repo_id = recipe.hub_model_id or folder.path.name
        self.hub_url: str | None = None

    def prepare(self) -> None:
        """Read everything there is to read, and build model, optimizer and schedule. Nothing is written."""
        recipe, task = self.recipe, self.task
        check_installed(recipe)
        check_optimizer(recipe.optim)
        check_adapter(recipe.peft)
        check_quantization(recipe.model)
        if recipe.push_to_hub:
            self._on_main(check_access, self.repo_id)
        # Before the data, which may take long.
        self.source = pin(replace(resolve_section(recipe.model, "model"), trusted=recipe.model.trust_remote_code))
        signals.poll()
        self.splits = load_data(recipe, task, self.source)
        self.data = training_data(recipe, task, self.splits, self.accelerator.num_processes)
        self.num_steps = self._count_steps()
        self.techniques = TechniqueStack(recipe, self._technique_context())
        self.techniques.use_data(self.data)
        for role in ("validation", "test"):
            if role in self.splits.by_role:
                self.examples[role] = prepare_split(task, self.splits.by_role[role], self.splits.where[role])
        self.findings = self._findings()
        for finding in self.findings:
            log.log(logging.WARNING if finding.level == "warning" else logging.INFO, "%s", finding.text)
        self.metric = self._metric_for_best_model()
        set_seed(recipe.seed)  # the new head's weights
        self.training = self._training(task.build_model(self.source, recipe.model))
        self.run_state = RunState(self.training, self.folder, self.splits, self.source)
        self._check_space()

    def all_examples(self) -> dict[str, Examples]:
        """The prepared rows by role, those of train too unless they are a stream."""
        train = {"train": self.data.examples} if isinstance(self.data, WholeSet) else {}
        return {**train, **self.examples}

    def _findings(self) -> list[Finding]:
        """What there is to know of the data, beyond that every row can be used."""
        found = data_findings(self.task, self.splits, self.all_examples())
        rows = len(self.examples.get("validation", ()))
        return [*found, *selection.small_validation(rows, self.task.primary_metric)]

    def _check_space(self) -> None:
        one, most = checkpoint.expected_bytes(self.training.model, self.techniques.state_dict())
        keep = self.recipe.checkpoint.save_total_limit
        most += (keep - 1) * one
        free = free_bytes(self.folder.path)
        if free < one:
            raise StorageError(
                f"{self.folder.path}: a checkpoint needs about {human_bytes(one)}, and {human_bytes(free)} are free"
            )
        if free < most:
            log.warning(
                "%s: %s are free, and the run may need %s (%d checkpoints, the best weights, the model)",
                self.folder.path,
                human_bytes(free),
                human_bytes(most),
                keep + 1,
            )

    def _metric_for_best_model(self) -> str | None:
        wanted, known = self.recipe.eval.metric_for_best_model, self.task.metric_names()
        if wanted and wanted not in known:
            raise RecipeError(f"eval.metric_for_best_model: no metric {wanted!r}; {did_you_mean(wanted, known)}")
        if "validation" not in self.examples:
            if self.recipe.eval.early_stopping_patience:
                raise RecipeError("eval.early_stopping_patience: there is no validation split to watch")
            return None
        return wanted or self.task.primary_metric

    def _count_steps(self) -> int:
        train = self.recipe.train
        if train.max_steps or not isinstance(self.data, WholeSet):
            return train.max_steps or 0
        return max(1, math.ceil(train.num_train_epochs * self.data.steps_per_epoch))

    def _technique_context(self) -> Context:
        whole = self.data if isinstance(self.data, WholeSet) else None
        counts = None if whole is None else self.task.label_counts(whole.examples.references)
        return Context(
            recipe=self.recipe,
            task=self.task,
            num_steps=self.num_steps,
            steps_per_epoch=None if whole is None else whole.steps_per_epoch,
            label_counts=None if counts is None else list(counts.values()),
            schedule=partial(schedule, self.recipe.optim),
            splits=tuple(self.splits.by_role),
        )

    def _training(self, model: Any) -> Training:
        recipe, techniques = self.recipe, self.techniques
        freeze(model, recipe.train.freeze)
        model, self.adapter = attach(model, recipe, self.task.peft_task_type, self.source)
        techniques.prepare_model(model)
        speed_up(model, recipe.train, self.accelerator.device)
        given = techniques.learning_rate_scales(model)
        scales = with_head_scale(model, recipe.optim, given)
        if scales != given:
            rate = max(scales.values()) * recipe.optim.learning_rate
            log.info("learning rate of the new head: %g (optim.head_learning_rate)", rate)
        optimizer = build_optimizer(model, recipe.optim, scales)
        scheduler = build_scheduler(optimizer, recipe.optim, self.num_steps, techniques.wrap_schedule)
        # Not wrapped for distributed training: `engine.step` sums the gradients once every rank is through its rows.
        prepared = self.accelerator.prepare_model(model, evaluation_mode=True)
        return Training(
            recipe=recipe,
            task=self.task,
            model=prepared,
            optimizer=self.accelerator.prepare_optimizer(optimizer),
            scheduler=scheduler,
            accelerator=self.accelerator,
            data=self.data,
            techniques=techniques,
            num_steps=self.num_steps,
            log=self._log,
            evaluate=self._evaluate,
            save=lambda state: self.run_state.save(state),
        )

    def _log(self, line: dict[str, Any]) -> None:
        process.on_main_process(self.accelerator, lambda: self.folder.append_log(line))
        self.trackers.log(line)

    def _evaluate(self, state: TrainState) -> bool:
        """Score validation; keep the weights if they are the best so far; say whether to stop early."""
        if self.metric is None:
            return False
        with self.techniques.evaluated(self.accelerator.unwrap_model(self.training.model)):
            return self._evaluate_weights(state)

    def _evaluate_weights(self, state: TrainState) -> bool:
        assert self.metric is not None
        outputs = self._outputs(self.training.model, "validation", autocast=True)
        self.task.tune(outputs, self.examples["validation"])
        metrics = self.task.score(outputs, self.examples["validation"])
        value = metrics[self.metric]
        better = selection.choose(state, value, metrics["loss"], lower=self.metric in self.task.lower_is_better)
        if better and self.recipe.eval.load_best_model_at_end:
            self.run_state.save_best(state.step)
        self._log(
            {"step": state.step}
            | {f"eval_{name}": value for name, value in metrics.items() if isinstance(value, float)}
        )
        log.info(
            "step %d/%d: train loss %.4f, validation loss %.4f, %s %s%s",
            state.step,
            self.training.num_steps,
            state.loss,
            metrics["loss"],
            self.metric,
            "undefined" if value is None else f"{value:.4f}",
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
            **batch_sizes(self.recipe, self.task, self.accelerator, autocast=autocast),
            description=f"evaluating {role}",
            autocast=autocast,
        )

    def _on_main(self, action: Callable[..., Any], *arguments: Any) -> None:
        process.on_main_process(self.accelerator, lambda: action(*arguments))

    def finish(self, state: TrainState, started: float) -> RunResult:
        """Score the chosen weights, test once, and write the results."""
        # Without the mixed-precision wrapper: scored are the numbers that anyone gets who opens the saved model.
        model = self.accelerator.unwrap_model(self.training.model, keep_fp32_wrapper=False)
        if self.recipe.eval.load_best_model_at_end and state.best_step not in (None, state.step):
            checkpoint.load_best(self.folder.checkpoints, state.best_step, model)
            log.info("kept the weights of step %d, the best on validation", state.best_step)
        else:
            self.techniques.adopt_evaluated(model)
        self.task.finish_model(model)
        if self.adapter is not None:
            model = self.adapter.finish(model)
        scores, answers, told = {}, {}, {}
        for role, examples in self.examples.items():  # validation before test
            outputs = self._outputs(model, role, autocast=False)
            if role == "validation":
                self.task.tune(outputs, examples)
                told = self.techniques.after_training(self.task, outputs, examples)
            if examples.labelled:
                scores[role] = self.task.score(outputs, examples, CONFIDENCE_SAMPLES)
            answers[role] = prediction_rows(self.task, outputs, examples, self.splits.by_role[role])
        seconds = max(state.seconds, time.perf_counter() - started)  # a run that was resumed has taken longer before
        metrics = run_metrics(
            self.training,
            state,
            model,
            scores,
            baselines=self._baselines({role: answers[role] for role in scores}, seconds),
            overview=data_overview(self.task, self.all_examples(), self.findings, self.splits.notes),
            splits=self.splits,
            source=self.source,
            total_seconds=time.perf_counter() - started,
        )
        if told:
            metrics["techniques"] = told
        if self.adapter is not None:
            metrics["model"]["peft"] = self.adapter.facts()
        self._on_main(self._write, model, metrics, [*answers.values()][-1] if answers else [])
        self.trackers.log({"step": state.step} | _numbers(scores))
        self._on_main(checkpoint.clean_up, self.folder.checkpoints, self.recipe.checkpoint.save_total_limit)
        self._on_main(self._push)
        return RunResult(self.folder.path, metrics, self.hub_url)

    def _push(self) -> None:
        recipe, run = self.recipe, self.folder.path
        if not recipe.push_to_hub:
            return
        options: dict[str, Any] = {"private": recipe.hub_private_repo, "revision": recipe.hub_revision}
        try:
            pushed = push(run, self.repo_id, **options)
        except UserError as error:
            command = f"sft-hf push {shlex.quote(str(run))} {self.repo_id}"
            raise UserError(f"the run is finished, and not pushed: {error}; then `{command}`") from error
        self.hub_url = pushed.url

    def _baselines(self, answers: dict[str, list[dict[str, Any]]], seconds: float) -> list[dict[str, Any]]:
        labelled = [role for role, examples in self.examples.items() if examples.labelled]
        if not labelled:
            return []
        split = "test" if "test" in labelled else "validation"
        run = BaselineRun(
            self.recipe,
            self.task,
            self.source,
            self.accelerator,
            split=split,
            examples=self.all_examples(),
            tables=self.splits.by_role,
            answers=answers[split],
        )
        return baseline_metrics(run, seconds)

    def _write(self, model: Any, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
        record = RunRecord(
            self.folder.path.name, self.recipe, metrics, with_references(predictions), self.folder.read_log()
        )

        def save(folder: Path) -> None:
            self.task.save(savable(model, self.adapter), folder)
            write_card(record, folder)

        if self.adapter is not None:
            with committed_folder(self.folder.adapter) as aside:
                write_adapter(record, self.adapter, aside)
        report = report_page(record, self.task, self.splits.by_role.get(record.split))
        self.folder.write_results(save, metrics, predictions, report)


def _numbers(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The plain metrics of each split, by names that trackers group."""
    every = ((role, name, value) for role, metrics in scores.items() for name, value in metrics.items())
    return {f"{role}/{name}": value for role, name, value in every if isinstance(value, (int, float))}
