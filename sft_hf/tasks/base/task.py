"""The Task class: a model, its losses and batches, and what is learned from the training rows before training."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from sft_hf.core.recipe.registry import load_component
from sft_hf.data.examples import Examples, padding_waste
from sft_hf.tasks.base.batches import Batch, Items
from sft_hf.tasks.base.reader import Reader
from sft_hf.tasks.base.scorer import Scorer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sft_hf.core.recipe.component_settings import TaskSettings
    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.recipe.sections import ModelSection
    from sft_hf.core.sources.sources import Source
    from sft_hf.data.findings import Finding
    from sft_hf.data.loading.roles import Splits

SettingsT = TypeVar("SettingsT", bound="TaskSettings")


class Task(ABC, Generic[SettingsT]):
    """One application scenario.

    The order of calls in a run: `fit` (label map and processor, from train split and checkpoint), `prepare` per split,
    train first, `build_model` (which may use what `prepare` saw: a vocabulary, the longest clip), then `collate` /
    `losses` / `predict_batch` per batch, the scorer's `tune` on validation and `score` per split, `save`. A trained run
    is opened again by `restore`.
    """

    reader: Reader
    """Which columns are read, new inputs, and rows as a person sees them; there from the beginning."""

    scorer: Scorer
    """Metrics, choices on validation and answers; known after `fit`."""

    predict_precision: ClassVar[str] = "no"
    """Mixed precision of `sft-hf predict` where nobody says. auto: `Scorer.close_calls` are found, and answers kept."""

    peft_task_type: ClassVar[str | None] = None
    """PEFT's name of the task, where it has one that does something."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.settings: SettingsT = recipe.task  # type: ignore[assignment]

    @classmethod
    def serving(cls, recipe: Recipe) -> type[Task[Any]]:
        """Return the class that serves a recipe of this task: this one, or one for another kind of answer."""
        return cls

    @property
    def row_cache_gigabytes(self) -> float:
        """What `RowCache` may take: nothing for a stream, whose rows may have no end."""
        return 0.0 if self.recipe.data.streaming else self.recipe.row_cache_gb

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
        """Forward pass; logits and targets of every item, from which techniques compute other losses.

        With cross-entropy as the criterion, `Items.row_losses` gives what `losses` gives.
        """
        raise NotImplementedError(self.no_items)

    model_kind: str = ""
    """Kinds of model that techniques distinguish within a task: ctc, multi_label, regression. Known after
    `fit`."""

    no_embeddings: str | None = None
    """Why `as_embeddings` cannot be asked for, as a user reads it; None where it can. Known after `fit`."""

    @abstractmethod
    def as_embeddings(self, model: nn.Module, batch: Batch) -> tuple[str, Batch]:
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

    def finish_model(self, model: nn.Module) -> None:
        """Change the chosen weights, in place, to those that are scored and saved; an adapter is still in it."""

    def answers_untrained(self) -> bool:
        """Whether the checkpoint can do the task as it comes, without any new weight; known after `fit`."""
        return False

    def as_pretrained(self, examples: Examples) -> tuple[Examples, str]:
        """Return the rows as the pretrained model was made to take them, and in words what differs from training."""
        return examples, ""

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
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write model, processor and what `restore` needs into a `from_pretrained` folder."""

    @classmethod
    @abstractmethod
    def restore(cls, recipe: Recipe, folder: Path) -> tuple[Task[Any], PreTrainedModel]:
        """Open what `save` wrote. Raises CheckpointError."""


def task_class(recipe: Recipe) -> type[Task[Any]]:
    """Return the class that serves a recipe. Raises RecipeError for an unknown task."""
    task: type[Task[Any]] = load_component("tasks", recipe.task.name)
    return task.serving(recipe)


def vocabulary_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary: which number means which token."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
