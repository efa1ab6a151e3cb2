"""A training run in three stages: prepare, train, finish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from accelerate import Accelerator
from accelerate.utils import set_seed

from sft_hf.core import console, signals
from sft_hf.core.errors import RunFolderError, Terminated, UserError, did_you_mean
from sft_hf.core.filesystem import write_json, write_text
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.core.run.folder import RunFolder
from sft_hf.core.run.record import RunRecord, with_references
from sft_hf.core.sources.sources import resolve_section
from sft_hf.data.examples import Examples
from sft_hf.data.findings import Finding
from sft_hf.engine import loop, process, selection
from sft_hf.engine.callbacks import Callback, Callbacks
from sft_hf.engine.epochs import InMemoryEpochs
from sft_hf.engine.frozen_features.build import with_frozen_features
from sft_hf.engine.optimization import check_optimizer
from sft_hf.engine.resume import checkpoint
from sft_hf.engine.resume.run_state import RunState
from sft_hf.engine.state import TrainState
from sft_hf.jobs.baselines.base import Run as BaselineRun
from sft_hf.jobs.baselines.compare import baseline_metrics
from sft_hf.jobs.build import build_techniques, build_training, check_space
from sft_hf.jobs.inputs import data_findings, load_data, of_memory, prepare_split, training_data
from sft_hf.jobs.overview import data_overview
from sft_hf.jobs.results import ALL_OUTPUTS, OUTPUTS, RunResult, push_run, report_page, run_metrics, write_model
from sft_hf.jobs.scoring import Scored, choose_weights, chosen_model, metric_for_best_model, score_splits
from sft_hf.jobs.trackers import Trackers, check_installed
from sft_hf.models.adapters.settings import check_adapter
from sft_hf.models.loading import pin
from sft_hf.models.quantization import check_quantization
from sft_hf.publishing.hub.access import check_access
from sft_hf.tasks.base import Task, task_class

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("sft_hf")


class TrainingJob:
    """A training run: `prepare` reads and builds, `train` runs the loop, `finish` scores and writes. ::

        with TrainingJob(recipe) as job:
            job.prepare()
            job.train()
            result = job.finish()

    Inside the `with` block the run folder is locked, and signals end the run after a checkpoint. `prepare` may be
    called outside of it, to inspect a run without training.

    Attributes, set by `prepare` unless stated otherwise:

    - `task`, `source`: the fitted task, and the source of the pretrained model
    - `splits`, `data`, `examples`: rows as read, by role; the source of the training epochs; the prepared rows of
      validation and test
    - `findings`: findings about the data
    - `training`: the arguments of the training loop
    - `metric`: the metric by which weights are chosen; None without a validation split
    - `state`: the progress of training (set by `train`)
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        splits: Mapping[str, Dataset] | None = None,
        outputs: Collection[str] = ALL_OUTPUTS,
        callbacks: Sequence[Callback] = (),
        resume: bool | Literal["auto"] = False,
        overwrite: bool = False,
        other_environment: bool = False,
    ) -> None:
        """Create a job without reading or building anything.

        Args:
            recipe: the recipe to run.
            splits: rows in memory, by role ("train", "validation", "test"), replacing the data of `data.name`, which
                becomes "memory". A missing role is held out of train as set in the recipe.
            outputs: the outputs to write, see `OUTPUTS`.
            callbacks: called during training; see `sft_hf.engine.callbacks`.
            resume, overwrite, other_environment: see `sft_hf.jobs.finetune.finetune`.

        Raises UserError for an unknown output, or an object that is not a Callback.
        """
        if unknown := sorted(set(outputs) - ALL_OUTPUTS):
            raise UserError(f"outputs: unknown output {unknown[0]!r}; {did_you_mean(unknown[0], list(OUTPUTS))}")
        self.recipe = recipe if splits is None else of_memory(recipe)
        self.given, self.outputs, self.callbacks = splits, frozenset(outputs), Callbacks(callbacks)
        self.resume, self.overwrite, self.other_environment = resume, overwrite, other_environment
        self.folder = RunFolder(Path(recipe.output_dir or "runs/run"))
        self.repo_id = recipe.hub_model_id or self.folder.path.name
        self.started = time.perf_counter()
        self.examples: dict[str, Examples] = {}
        self.hub_url: str | None = None
        self._open = ExitStack()

    @cached_property
    def accelerator(self) -> Accelerator:
        """The processes and devices that the run uses."""
        return process.build_accelerator(self.recipe.train.mixed_precision, self.recipe.train.num_threads)

    @cached_property
    def task(self) -> Task[Any]:
        """The recipe's task; `prepare` fits it."""
        return task_class(self.recipe)(self.recipe)

    @cached_property
    def trackers(self) -> Trackers:
        """The experiment trackers of the recipe."""
        return Trackers(self.recipe, self.folder.path, self.accelerator)

    def check_folder(self) -> RunResult | None:
        """Check that the run may use its folder; return the result if it is resumed and already finished.

        Raises RunFolderError; nothing is changed.
        """
        self.folder.refuse_if_taken(self.resume, self.overwrite)
        if self.resume == "auto":
            self.resume = self.folder.has_begun()
        if not self.resume:
            return None
        self.folder.refuse_other_recipe(self.recipe)
        metrics = self.folder.finished()
        return None if metrics is None else RunResult(self.folder.path, metrics)

    def __enter__(self) -> TrainingJob:
        """Install signal handlers, and lock the run folder if it exists.

        Raises RunFolderError for a folder that is in use, or that the run may not use.
        """
        if self.check_folder() is not None:
            raise RunFolderError(f"{self.folder.path}: nothing to resume: the run is finished")
        with ExitStack() as stack:
            stack.enter_context(console.working("still working"))
            stack.enter_context(signals.listening())
            stack.callback(self.folder.lock.release)
            stack.callback(self.trackers.finish)
            self._on_main(self.folder.lock.acquire)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Release the lock, finish trackers and restore signal handlers."""
        return self._open.__exit__(kind, error, traceback)

    # --- 1: prepare ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read all inputs, and build model, optimizer and schedule. Nothing is written.

        Raises UserError for a bad recipe, model or data, StorageError if not even one checkpoint fits on the disk, and
        Terminated after a signal.
        """
        try:
            self._read()
            self._build()
            signals.poll()
        except (UserError, Terminated):
            if signals.requested():  # a download aborted by the signal is not a user error
                raise Terminated("stopped by a signal before the first step; nothing was written") from None
            raise

    def _read(self) -> None:
        recipe, task = self.recipe, self.task
        check_installed(recipe)
        check_optimizer(recipe.optim)
        check_adapter(recipe.peft)
        check_quantization(recipe.model)
        if self._pushes:
            self._on_main(check_access, self.repo_id)
        # Before the data, which may take a long time.
        self.source = pin(replace(resolve_section(recipe.model, "model"), trusted=recipe.model.trust_remote_code))
        signals.poll()
        self.splits = load_data(recipe, task, self.source, self.given)
        self.data = training_data(recipe, task, self.splits, self.accelerator.num_processes)
        self.techniques = build_techniques(recipe, task, self.data, list(self.splits.by_role))
        for role in ("validation", "test"):
            if role in self.splits.by_role:
                self.examples[role] = prepare_split(task, self.splits.by_role[role], self.splits.where[role])
        self.findings = self._findings()
        for finding in self.findings:
            log.log(logging.WARNING if finding.level == "warning" else logging.INFO, "%s", finding.text)

    def _build(self) -> None:
        self.metric = metric_for_best_model(self.task, self.examples)
        set_seed(self.recipe.seed)  # the new head's weights
        self.training, self.adapter = build_training(
            self.recipe,
            self.task,
            self.source,
            self.accelerator,
            self.data,
            self.techniques,
            log_line=self._log,
            evaluate=self._evaluate,
            save=lambda state: self.run_state.save(state),
            callbacks=self.callbacks,
        )
        self.run_state = RunState(self.training, self.folder, self.splits, self.source)
        check_space(self.training, self.folder)

    def all_examples(self) -> dict[str, Examples]:
        """Return the prepared rows by role, including train unless it is a stream."""
        train = {"train": self.data.examples} if isinstance(self.data, InMemoryEpochs) else {}
        return {**train, **self.examples}

    def _findings(self) -> list[Finding]:
        """Return findings about the data."""
        found = data_findings(self.task, self.splits, self.all_examples())
        rows = len(self.examples.get("validation", ()))
        return [*found, *selection.small_validation(rows, self.task.scorer.primary_metric)]

    # --- 2: train ------------------------------------------------------------------------------------------------

    def train(self) -> TrainState:
        """Start the run folder, or restore the newest checkpoint if the run is resumed, and train to the last step.

        Raises RunFolderError for a folder that the run may not use, StorageError, TrainingError, and Terminated on a
        signal, after saving a checkpoint.
        """
        self.trackers.start(in_the_run_folder=False)
        if not self.resume:
            self._on_main(self.folder.start, self.recipe, self.overwrite)
        self.trackers.start(in_the_run_folder=True)
        self.state = self.run_state.restore(self.other_environment) if self.resume else TrainState()
        loop.train(with_frozen_features(self.training, self.state), self.state)
        return self.state

    def _log(self, line: dict[str, Any]) -> None:
        self._on_main(self.folder.append_log, line)
        self.trackers.log(line)

    def _evaluate(self, state: TrainState) -> bool:
        if self.metric is None:
            return False
        return choose_weights(self.training, self.examples["validation"], self.metric, state, self.run_state.save_best)

    # --- 3: finish -----------------------------------------------------------------------------------------------

    def finish(self) -> RunResult:
        """Score the chosen weights, write the results, and push them if the recipe sets `push_to_hub`."""
        model = chosen_model(self.training, self.adapter, self.state, self.folder)
        scored = score_splits(self.training, model, self.examples, self.splits)
        metrics = self._metrics(model, scored)
        self._on_main(self._write, model, metrics, scored)
        self.trackers.log_scores(self.state.step, scored.scores)
        self._on_main(checkpoint.clean_up, self.folder.checkpoints, self.recipe.checkpoint.save_total_limit)
        if self._pushes:
            self._on_main(self._push)
        return RunResult(self.folder.path, metrics, self.hub_url)

    def _metrics(self, model: Any, scored: Scored) -> dict[str, Any]:
        passed = time.perf_counter() - self.started
        metrics = run_metrics(
            self.training,
            self.state,
            model,
            scored.scores,
            # A resumed run has also taken time before.
            baselines=self._baselines(scored, max(self.state.seconds, passed)),
            overview=data_overview(self.task, self.all_examples(), self.findings, self.splits.notes),
            splits=self.splits,
            source=self.source,
            total_seconds=time.perf_counter() - self.started,
        )
        if scored.chosen:
            metrics["techniques"] = scored.chosen
        if self.adapter is not None:
            metrics["model"]["peft"] = self.adapter.facts()
        if left_out := sorted(ALL_OUTPUTS - self.outputs):
            metrics["not_written"] = left_out
        return metrics

    def _baselines(self, scored: Scored, seconds: float) -> list[dict[str, Any]]:
        if not scored.scores or "baselines" not in self.outputs:
            return []
        split = "test" if "test" in scored.scores else "validation"
        run = BaselineRun(
            self.recipe,
            self.task,
            self.source,
            self.accelerator,
            split=split,
            examples=self.all_examples(),
            tables=self.splits.by_role,
            answers=scored.predictions[split],
        )
        return baseline_metrics(run, seconds)

    def _write(self, model: Any, metrics: dict[str, Any], scored: Scored) -> None:
        folder, task = self.folder, self.task
        predictions = list(scored.predictions.values())[-1] if scored.predictions else []
        outputs = {
            role: task.scorer.saved_outputs(scored.outputs[role], rows, role) for role, rows in self.examples.items()
        }
        record = RunRecord(folder.path.name, self.recipe, metrics, with_references(predictions), folder.read_log())
        record = replace(record, outputs=outputs.get(record.split))
        if "model" in self.outputs:
            write_model(folder, record, task, model, self.adapter, card="card" in self.outputs)
        if "predictions" in self.outputs:
            folder.write_predictions(predictions)
        if "outputs" in self.outputs:
            folder.write_outputs(outputs)
        if "report" in self.outputs:
            write_text(folder.report_file, report_page(record, task, self.splits.by_role.get(record.split)))
        write_json(folder.metrics_file, metrics)  # last: a folder that has it is a finished run

    @property
    def _pushes(self) -> bool:
        return self.recipe.push_to_hub and {"push", "model", "card"} <= self.outputs

    def _push(self) -> None:
        self.hub_url = push_run(self.recipe, self.folder, self.repo_id)

    def _on_main(self, action: Callable[..., Any], *arguments: Any) -> None:
        process.on_main_process(self.accelerator, lambda: action(*arguments))
