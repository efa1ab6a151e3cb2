"""What a task is: everything that differs by modality, behind one interface that the loop and the evaluator see."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.recipe.registry import load_component
from sft_hf.data.examples import Examples, padding_waste
from sft_hf.tasks.scoring.confidence import Confidence

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sft_hf.core.recipe.component_settings import TaskSettings
    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.recipe.sections import ModelSection
    from sft_hf.core.run.outputs import SplitOutputs
    from sft_hf.core.sources.sources import Source
    from sft_hf.data.findings import Finding
    from sft_hf.data.loading.roles import Splits
    from sft_hf.data.new_inputs.inputs import Input

Batch = dict[str, Tensor]
"""Tensors whose first dimension is the row, on the device of the model."""

SettingsT = TypeVar("SettingsT", bound="TaskSettings")


@dataclass(frozen=True)
class Items:
    """What a forward pass says of every item whose loss counts: a classified row, a token to be written.

    Attributes:
        logits: float32 [items, classes].
        targets: int64 [items], or float32 [items, classes]: how much of the item is each class.
        rows: int64 [items], the row that each item belongs to, ascending.
        num_rows: rows of the batch.
        scale: of every item's loss: one over the labels where a row's loss is the mean over labels.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    num_rows: int
    scale: float = 1.0

    def row_losses(self, criterion: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of the losses of each row's items, float32 [rows].

        Args:
            criterion: logits -> [items, classes], the loss that an item would have, were its class this one.
        """
        losses = criterion(self.logits)
        if self.targets.ndim == 1:
            chosen = losses.gather(1, self.targets[:, None])[:, 0]
        else:
            chosen = (losses * self.targets).sum(dim=1)
        if len(self.rows) == self.num_rows:  # every row has an item of its own
            return chosen * self.scale
        return chosen.new_zeros(self.num_rows).index_add(0, self.rows, chosen) * self.scale


@dataclass(frozen=True)
class Shown:
    """A row as a person perceives it, small enough for a page.

    `text` is the text itself, or the name of a file; `content` the bytes of a picture or recording in the format that
    `media_type` names (image/jpeg, audio/ogg, ...), empty for texts.
    """

    text: str
    content: bytes = b""
    media_type: str = "text/plain"


class Task(ABC, Generic[SettingsT]):
    """One application scenario.

    The order of calls in a run: `fit` (label map and processor, from train split and checkpoint), `prepare` per split,
    train first, `build_model` (which may use what `prepare` saw: a vocabulary, the longest clip), then `collate` /
    `losses` / `predict_batch` per batch, `tune` on validation, `score` per split, `save`. A trained run is opened again
    by `restore`.
    """

    primary_metric: str
    """The metric that model selection maximises, known after `fit`."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """The metrics that model selection minimises instead."""

    predict_precision: ClassVar[str] = "no"
    """Mixed precision of `sft-hf predict` where nobody says. auto: `close_calls` are found, and answers not changed."""

    peft_task_type: ClassVar[str | None] = None
    """PEFT's name of the task, where it has one that does something."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.settings: SettingsT = recipe.task  # type: ignore[assignment]
        self.confidence = Confidence()

    @classmethod
    def serving(cls, recipe: Recipe) -> type[Task[Any]]:
        """Return the class that serves a recipe of this task: this one, or one for another kind of answer."""
        return cls

    @property
    def row_cache_gigabytes(self) -> float:
        """What `RowCache` may take: nothing for a stream, whose rows may have no end."""
        return 0.0 if self.recipe.data.streaming else self.recipe.row_cache_gb

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """The columns that the task reads from a source: {key of the recipe: column}."""

    def loaded_columns(self) -> dict[str, str]:
        """The columns that the task reads from loaded splits, in which several label columns are one."""
        found: dict[str, str] = {}
        for key, column in self.columns().items():
            is_label = key.startswith("data.label_column")
            found["data.label_column" if is_label else key] = self.recipe.data.target_column if is_label else column
        return found

    def read_labels(self, splits: Splits) -> Splits:
        """Return the splits with their labels read, see `sft_hf.data.labels.reading`; no change without labels."""
        return splits

    def read_rows(self, rows: Dataset, where: str) -> Dataset:
        """Return some rows of a stream with their labels read as `read_labels` decided."""
        return rows

    @abstractmethod
    def fit(self, train: Dataset, where: str, source: Source) -> None:
        """Learn the label map from the full train split, and load the processor. Raises DataError, CheckpointError."""

    def expect_checkpoint(self, source: Source) -> None:
        """Prepare a restored task for `build_model` with the checkpoint that its run started from."""

    @abstractmethod
    def build_model(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """Load the checkpoint with a head for the labels. Raises CheckpointError."""

    @abstractmethod
    def prepare(self, split: Dataset, where: str) -> Examples:
        """Turn the rows of a split into model inputs. Raises DataError naming the row."""

    def findings(self, examples: Mapping[str, Examples]) -> list[Finding]:
        """What the prepared splits, by role, have that a user should know before training."""
        return []

    def identity(self) -> dict[str, Any]:
        """What the model's outputs mean, as plain data: a checkpoint is resumed only where it is the same."""
        return {}

    @abstractmethod
    def collate(self, features: list[dict[str, Any]]) -> Batch:
        """Pad and stack rows into a batch, labels included where the rows have them."""

    @abstractmethod
    def item_counts(self, batch: Batch) -> Tensor:
        """Items that each row's loss is a sum over, float [rows]: 1 for a classified row, tokens for a sequence."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Forward pass; the loss of each row summed over its items, float32 [rows]. Nothing is averaged here."""

    no_items: str | None = None
    """Why `items` cannot be asked for, as a user reads it; None where it can. Known after `fit`."""

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Forward pass; logits and targets of every item, from which techniques make losses of their own.

        With cross-entropy as the criterion, `Items.row_losses` gives what `losses` gives.
        """
        raise NotImplementedError(self.no_items)

    model_kind: str = ""
    """What the model is, where techniques tell models of one task apart: ctc, multi_label, regression. Known after
    `fit`."""

    no_continuous: str | None = None
    """Why `continuous` cannot be asked for, as a user reads it; None where it can. Known after `fit`."""

    @abstractmethod
    def continuous(self, model: nn.Module, batch: Batch) -> tuple[str, Batch]:
        """Return the batch with its inputs as real numbers (texts as the vectors of their tokens), and their name.

        A batch whose inputs are real numbers already, as another technique made them, is returned as it is.
        """

    def mixed_labels(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor | None:
        """Return the labels of mixtures of two rows, of which the first has `weights` [rows]; None: there are none.

        Of transcripts there are none: the losses against both are mixed instead.
        """
        return None

    @abstractmethod
    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Forward pass without gradient; tensors whose first dimension is the row (and `loss` [rows] given labels)."""

    def close_calls(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """Rows that float32 might answer otherwise than reduced precision did, bool [rows]; None: cannot be told."""
        return None

    def finish_model(self, model: nn.Module) -> None:
        """Change the chosen weights, in place, to those that are scored and saved; an adapter is still in it."""

    @abstractmethod
    def metric_names(self) -> list[str]:
        """The metrics that model selection may go by, `loss` among them; known after `fit`."""

    @abstractmethod
    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """Choose what is chosen on validation outside training (a decision threshold, say)."""

    @abstractmethod
    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """Metrics of a split; with `confidence_samples` bootstrap resamples, intervals and per-class figures too."""

    @abstractmethod
    def judged(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Confidence of each row's answer, as `decode` tells it, float64 [rows]; whether it is right, bool [rows]."""

    def set_temperature(self, temperature: float) -> None:
        """Scale the confidence from now on; what is decided by it is scaled too, so that no answer changes."""
        self.confidence.temperature = temperature

    @abstractmethod
    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """What a temperature is fitted to: logits [items, classes] before any, and the right classes, int64 [items]."""

    def constant_answer(
        self, train: Sequence[Any], references: Sequence[Any], confidence_samples: int
    ) -> tuple[str, dict[str, Any]] | None:
        """The best that needs no model: a sentence on it, and its metrics on `references`. None: there is none.

        Args:
            train: references of the training rows, from which the answer is chosen.
            references: of the split that is scored.
            confidence_samples: as in `score`.
        """
        return None

    constant_name: str = "majority class"
    """What metrics.json calls `constant_answer`."""

    def compared_metrics(self) -> list[str]:
        """The metrics that metrics.json holds of a baseline."""
        return [self.primary_metric]

    def answers_untrained(self) -> bool:
        """Whether the checkpoint can do the task as it comes, without any new weight; known after `fit`."""
        return False

    def as_pretrained(self, examples: Examples) -> tuple[Examples, str]:
        """Return the rows as the pretrained model was made to take them, and in words what differs from training."""
        return examples, ""

    def texts(self, table: Dataset) -> list[list[str]] | None:
        """Return the columns of text that the model reads, [columns][rows]; None where rows are no texts."""
        return None

    def label_counts(self, references: Sequence[Any]) -> dict[str, int] | None:
        """Rows of each label, in label order; None for a task without labels."""
        return None

    def target_spread(self, references: Sequence[Any]) -> dict[str, dict[str, float]] | None:
        """Smallest, mean and largest value and standard deviation of each target; None for a task without numbers."""
        return None

    def strata(self, train: Dataset) -> list[Any] | None:
        """Return the group of each row, from all of which rows are held out alike: its label. None: there are none."""
        from sft_hf.data.splits import label_groups  # with `datasets`, which `predict` need not wait for

        return label_groups(train, self.recipe.data.target_column)

    def longest_row(self) -> int | None:
        """The most that a row may cost, if the cost of a batch is its rows x its longest row; None if it is not."""
        return None

    def measured_lengths(self, examples: Examples) -> tuple[str, np.ndarray] | None:
        """How long the rows are, and in which unit; None where rows have no length."""
        return None

    def padding(self, examples: Examples, batches: Sequence[tuple[int, ...]]) -> float | None:
        """The share of what is computed for these batches of rows that is padding; None where rows have no length."""
        return None if self.measured_lengths(examples) is None else padding_waste(examples.lengths, batches)

    @abstractmethod
    def show(self, split: Dataset, indices: Sequence[int]) -> list[Shown]:
        """The rows as a person perceives them. Raises DataError for a file that is no longer there."""

    @abstractmethod
    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """One JSON-ready prediction per row."""

    @abstractmethod
    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """What `predict_batch` gave for the rows of a split, as the run folder keeps it."""

    @abstractmethod
    def reference(self, value: Any) -> Any:
        """A reference as it stands in predictions.jsonl."""

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write model, processor and what `restore` needs into a `from_pretrained` folder."""

    @classmethod
    @abstractmethod
    def restore(cls, recipe: Recipe, folder: Path) -> tuple[Task[Any], PreTrainedModel]:
        """Open what `save` wrote. Raises CheckpointError."""

    @abstractmethod
    def read_inputs(self, inputs: Sequence[Any], literal: bool = False) -> Iterable[list[Input]]:
        """Chunks of new rows for `predict`, from what a user gave: texts, files, folders; bad ones have an error.

        `literal`: every input is a text, whatever files there are.
        """

    @abstractmethod
    def prepare_inputs(self, rows: list[dict[str, Any]]) -> Examples:
        """Turn the columns of `read_inputs` into model inputs without references. Raises DataError, maybe later."""

    def class_probabilities(self, outputs: dict[str, Tensor]) -> list[dict[str, float]] | None:
        """The probability of every class, for each row; None for a task without classes."""
        return None

    def decode_inputs(self, outputs: dict[str, Tensor], examples: Examples) -> list[dict[str, Any]]:
        """One JSON-ready prediction per row of `read_inputs`, whatever number of inputs `prepare_inputs` made of it."""
        return self.decode(outputs)


def task_class(recipe: Recipe) -> type[Task[Any]]:
    """Return the class that serves a recipe. Raises RecipeError for an unknown task."""
    task: type[Task[Any]] = load_component("tasks", recipe.task.name)
    return task.serving(recipe)


def vocabulary_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary: which number means which token."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def pinned(batch: Batch, device: torch.device) -> Batch:
    """Return the batch in page-locked memory, whence it goes to a GPU while the host goes on; for others as it is."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # in a new thread it is the first, whichever is this process's
        return {name: tensor if _is_expanded(tensor) else tensor.pin_memory() for name, tensor in batch.items()}


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() < tensor.nbytes
