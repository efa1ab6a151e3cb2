"""The Task class: model, batches, losses, and what is learned from the training rows before training."""

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

    The order of calls in a run: `fit` (label map and processor, from train split and pretrained model), `prepare` per
    split, train first, `build_model` (which may use results of `prepare`: a vocabulary, the longest clip), then
    `collate` / `losses` / `predict_batch` per batch, the scorer's `tune` on validation and `score` per split, `save`.
    `restore` loads a trained model.
    """

    reader: Reader
    """Columns, new inputs and previews of rows; set by the constructor."""

    scorer: Scorer
    """Metrics, choices on validation and predictions; set by `fit`."""

    predict_precision: ClassVar[str] = "no"
    """Default mixed precision of `sft-hf predict`. auto: rows in `Scorer.close_calls` are recomputed in float32."""

    peft_task_type: ClassVar[str | None] = None
    """PEFT's name of the task, if it has an effect."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.settings: SettingsT = recipe.task  # type: ignore[assignment]

    @classmethod
    def serving(cls, recipe: Recipe) -> type[Task[Any]]:
        """Return the class for a recipe of this task: this one, or one for another kind of answer."""
        return cls

    @property
    def row_cache_gigabytes(self) -> float:
        """The size limit of `RowCache`: 0 for a stream, which may be endless."""
        return 0.0 if self.recipe.data.streaming else self.recipe.row_cache_gb

    def read_labels(self, splits: Splits) -> Splits:
        """Return the splits with their labels read, see `sft_hf.data.labels.reading`; unchanged without labels."""
        return splits

    def read_rows(self, rows: Dataset, where: str) -> Dataset:
        """Return rows of a stream with their labels read as decided by `read_labels`."""
        return rows

    @abstractmethod
    def fit(self, train: Dataset, where: str, source: Source) -> None:
        """Learn the label map from the full train split, and load the processor. Raises DataError, CheckpointError."""

    def expect_checkpoint(self, source: Source) -> None:
        """Prepare a restored task for `build_model` with the pretrained model that its run started from."""

    @abstractmethod
    def build_model(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """Load the pretrained model with a head for the labels. Raises CheckpointError."""

    @abstractmethod
    def prepare(self, split: Dataset, where: str) -> Examples:
        """Turn the rows of a split into model inputs. Raises DataError naming the row."""

    def findings(self, examples: Mapping[str, Examples]) -> list[Finding]:
        """Return what a user should know about the prepared splits {role: examples} before training."""
        return []

    def identity(self) -> dict[str, Any]:
        """Return the meaning of the model's outputs as plain data; it must match when a checkpoint is resumed."""
        return {}

    @abstractmethod
    def collate(self, features: list[dict[str, Any]]) -> Batch:
        """Pad and stack rows into a batch, with labels if the rows have them."""

    @abstractmethod
    def item_counts(self, batch: Batch) -> Tensor:
        """Return the number of items in each row's loss, float [rows]: 1 for classification, tokens for a sequence."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run a forward pass; return the loss of each row, summed (not averaged) over its items, float32 [rows]."""

    no_items: str | None = None
    """Why `items` is not supported, shown to the user; None if it is. Set by `fit`."""

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Run a forward pass; return logits and targets of every item, from which techniques compute other losses.

        With cross-entropy as the criterion, `Items.row_losses` equals `losses`.
        """
        raise NotImplementedError(self.no_items)

    model_kind: str = ""
    """The kind of model, which techniques distinguish within a task: ctc, multi_label, regression. Set by `fit`."""

    no_embeddings: str | None = None
    """Why `as_embeddings` is not supported, shown to the user; None if it is. Set by `fit`."""

    @abstractmethod
    def as_embeddings(self, model: nn.Module, batch: Batch) -> tuple[str, Batch]:
        """Return the name of the continuous inputs, and the batch with them (texts as token embeddings).

        A batch that another technique has already converted is returned unchanged.
        """

    def mixed_labels(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor | None:
        """Return the labels of mixtures of two rows, with `weights` [rows] for the first; None if not supported.

        Transcripts cannot be mixed; the losses against both are mixed instead.
        """
        return None

    @abstractmethod
    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Run a forward pass without gradient; return tensors [rows, ...], including `loss` [rows] given labels."""

    def finish_model(self, model: nn.Module) -> None:
        """Convert the selected weights, in place, to those to score and save; adapters are not merged yet."""

    def answers_untrained(self) -> bool:
        """Whether the pretrained model can do the task without new weights; known after `fit`."""
        return False

    def as_pretrained(self, examples: Examples) -> tuple[Examples, str]:
        """Return the rows as the pretrained model expects them, and a description of the differences from training."""
        return examples, ""

    def strata(self, train: Dataset) -> list[Any] | None:
        """Return the group of each row for stratified splits (its label); None if there are none."""
        from sft_hf.data.splits import label_groups  # imports `datasets`, which `predict` does not need

        return label_groups(train, self.recipe.data.target_column)

    def longest_row(self) -> int | None:
        """Return the maximum cost of a row, if a batch costs rows x longest row; None otherwise."""
        return None

    def measured_lengths(self, examples: Examples) -> tuple[str, np.ndarray] | None:
        """Return the unit and the lengths of the rows; None if rows have no length."""
        return None

    def padding(self, examples: Examples, batches: Sequence[tuple[int, ...]]) -> float | None:
        """Return the fraction of padding in these batches of rows; None if rows have no length."""
        return None if self.measured_lengths(examples) is None else padding_waste(examples.lengths, batches)

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write model, processor and the settings for `restore` to a `from_pretrained` folder."""

    @classmethod
    @abstractmethod
    def restore(cls, recipe: Recipe, folder: Path) -> tuple[Task[Any], PreTrainedModel]:
        """Load a model that `save` wrote. Raises CheckpointError."""


def task_class(recipe: Recipe) -> type[Task[Any]]:
    """Return the class for a recipe. Raises RecipeError for an unknown task."""
    task: type[Task[Any]] = load_component("tasks", recipe.task.name)
    return task.serving(recipe)


def vocabulary_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary (tokens and their ids)."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
