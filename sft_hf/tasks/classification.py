"""Base class of classifiers of all modalities: labels, per-row losses, predictions.

Single label: softmax and cross-entropy. Multi-label: a sigmoid per label, binary cross-entropy averaged over labels,
and one decision threshold chosen on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_hf.core.errors import first_few
from sft_hf.core.recipe.component_settings import TaskSettings
from sft_hf.data.examples import Examples
from sft_hf.data.findings import Finding
from sft_hf.data.labels.label_map import LabelMap, build_label_map, encode_labels, is_multi_label
from sft_hf.data.labels.reading import LabelReading, is_unlabelled, read_labels, read_rows
from sft_hf.models.trained_heads import HeadRows, in_own_order, label_order, open_config
from sft_hf.tasks.base import Batch, Items, Task
from sft_hf.tasks.classification_scorer import ClassificationScorer
from sft_hf.tasks.scoring.confidence import Confidence

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.sources.sources import Source
    from sft_hf.data.loading.roles import Splits

SettingsT = TypeVar("SettingsT", bound=TaskSettings)

FEW_ROWS = 10  # training rows of a label, below which a warning is logged
UNBALANCED = 10  # ratio of the most frequent label to the least frequent, above which a note is logged


def classification_losses(logits: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """Return each row's loss, float32 [rows].

    Args:
        logits: [rows, labels].
        labels: int64 [rows], or for multi-label float [rows, labels] of 0 and 1.
        multi_label: binary cross-entropy, averaged over labels, instead of cross-entropy.
    """
    logits = logits.float()
    if multi_label:
        return functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
    return functional.cross_entropy(logits, labels, reduction="none")


def _listed(names: Sequence[str]) -> str:
    return first_few(names, 5, "labels")


class ClassifierTask(Task[SettingsT]):
    """Base class of classifiers; subclasses turn rows into model inputs."""

    scorer: ClassificationScorer
    reading: LabelReading | None = None
    head_rows: HeadRows | None = None

    @property
    def label_map(self) -> LabelMap:
        """The labels, in the order of the model's outputs; known after `fit`."""
        return self.scorer.label_map

    @property
    def multi_label(self) -> bool:
        """Whether a row has any number of labels; known after `fit`."""
        return self.scorer.multi_label

    @property
    def model_kind(self) -> str:  # type: ignore[override]
        """See `Task.model_kind`."""
        return "multi_label" if self.multi_label else ""

    def read_labels(self, splits: Splits) -> Splits:
        """See `Task.read_labels`."""
        kind = getattr(self.settings, "problem_type", "auto")
        splits, self.reading = read_labels(splits, self.recipe.data, kind)
        return splits

    def read_rows(self, rows: Dataset, where: str) -> Dataset:
        """See `Task.read_rows`."""
        return rows if self.reading is None else read_rows(rows, where, self.recipe.data, self.reading)

    def encode(self, split: Dataset, where: str) -> list[Any] | None:
        """Return each row's label index, or list of indices; None for an unlabeled split. Raises DataError."""
        column = self.recipe.data.target_column
        if is_unlabelled(split, column):
            return None
        return encode_labels(split, column, self.label_map, where, self.multi_label)

    def fit_labels(self, train: Any, where: str, kind: str, config: Any) -> None:
        """Learn the labels, and whether rows have several, from the training rows.

        Args:
            train: the rows, a data set or a stream.
            where: name of the split, for messages.
            kind: `task.problem_type`.
            config: of the pretrained model, whose order is kept if it has the same labels; None: it has no config.

        Raises DataError for labels that cannot be used.
        """
        data = self.recipe.data
        if kind != "auto":
            multi_label = kind == "multi_label_classification"
        elif self.reading is not None:
            multi_label = self.reading.several
        else:
            multi_label = is_multi_label(train, data.target_column)
        if data.label_names is None and self.reading is not None and self.reading.names:
            label_map = LabelMap(self.reading.names)
        else:
            label_map = build_label_map(train, data.target_column, data.label_names, where, multi_label)
        own = label_order(config)
        if data.label_names is None and (names := in_own_order(label_map.names, own)) != label_map.names:
            label_map = LabelMap(names)
        self.scorer = ClassificationScorer(label_map, multi_label)
        self._expect_head(own)

    def head_config(self) -> dict[str, Any]:
        """Return the fields of a Transformers config that describe this head."""
        return {
            "num_labels": len(self.label_map.names),
            "id2label": self.label_map.id2label,
            "label2id": self.label_map.label2id,
            "problem_type": "multi_label_classification" if self.multi_label else "single_label_classification",
        }

    def identity(self) -> dict[str, Any]:
        """See `Task.identity`: the labels in the order of the outputs."""
        return {"labels": list(self.label_map.names), "multi_label": self.multi_label}

    def findings(self, examples: Mapping[str, Examples]) -> list[Finding]:
        """See `Task.findings`: the distribution of the labels."""
        counts = {role: self.scorer.counts(split.references) for role, split in examples.items() if split.labelled}
        found = []
        if "train" in counts:
            found += self._rare_labels(counts["train"])
        for role in ("validation", "test"):
            if role not in counts:
                continue
            if missing := [name for name, count in zip(self.label_map.names, counts[role], strict=True) if not count]:
                found.append(
                    Finding(
                        "note",
                        f"{role} has no rows labeled {_listed(missing)}; no metrics are computed for these labels",
                    )
                )
            if not self.multi_label:
                # The most frequent label of train, as in the baseline; in these rows it may be another one.
                most = int(counts.get("train", counts[role]).argmax())
                share = counts[role][most] / counts[role].sum()
                name = self.label_map.names[most]
                whose = ", the most frequent label of train," if "train" in counts else ""
                text = f"{role}: always answering {name!r}{whose} would have accuracy {share:.4f}"
                found.append(Finding("note", text))
        return found

    def _rare_labels(self, counts: np.ndarray) -> list[Finding]:
        found = []
        named = list(zip(self.label_map.names, counts.tolist(), strict=True))
        if unseen := [name for name, count in named if not count]:
            found.append(
                Finding("warning", f"train has no rows labeled {_listed(unseen)}; the model cannot learn these labels")
            )
        if rare := [f"{name} ({count})" for name, count in named if 0 < count < FEW_ROWS]:
            found.append(Finding("warning", f"train has fewer than {FEW_ROWS} rows of {_listed(rare)}; add some"))
        present = counts[counts > 0]
        if len(present) and present.max() > UNBALANCED * present.min():
            ratio = present.max() / present.min()
            found.append(
                Finding(
                    "note",
                    "train is unbalanced: "
                    f"the most frequent label has {ratio:.0f} times as many rows as the least frequent",
                )
            )
        return found

    def expect_checkpoint(self, source: Source) -> None:
        """See `Task.expect_checkpoint`: the labels of its head."""
        self._expect_head(label_order(open_config(source, self.recipe.model.architecture)))

    def _expect_head(self, own: tuple[str, ...]) -> None:
        self.head_rows = HeadRows(own, self.label_map.names, chosen=self.recipe.data.label_names is not None)

    def read_head(self, config: Any) -> None:
        """Read labels, problem type and threshold from the config of a trained model."""
        names = tuple(config.id2label[index] for index in sorted(config.id2label))
        label_map = LabelMap(names, "label_names" if self.recipe.data.label_names else "train")
        multi_label = config.problem_type == "multi_label_classification"
        self.scorer = ClassificationScorer(label_map, multi_label, float(getattr(config, "decision_threshold", 0.5)))
        self.scorer.confidence = Confidence.of(config)

    def write_decisions(self, config: Any) -> None:
        """Write the values chosen on validation to the config of a trained model."""
        if self.multi_label:
            config.decision_threshold = self.scorer.threshold
        self.scorer.confidence.write(config)

    def labelled_rows(self, split: Dataset, where: str) -> tuple[Dataset, list[Any] | None, list[str]]:
        """Return the usable rows of a split, their labels as encoded by `encode`, and notes on rows left out.

        Raises DataError naming the row.
        """
        return split, self.encode(split, where), []

    def label_tensor(self, labels: list[Any]) -> Tensor:
        """Return encoded labels as a tensor: int64 [rows], or float [rows, labels] of 0 and 1 for multi-label."""
        if not self.multi_label:
            return torch.tensor(labels, dtype=torch.int64)
        return torch.from_numpy(self.scorer.indicator(labels))

    def item_counts(self, batch: Batch) -> Tensor:
        """See `Task.item_counts`: one item per row."""
        return torch.ones(len(batch["labels"]), dtype=torch.float32, device=batch["labels"].device)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits [rows, labels] of a batch; its labels are not passed to the model."""
        logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        return logits

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Task.losses`: the (binary) cross-entropy of each row, float32 [rows]."""
        return classification_losses(self.forward(model, batch), batch["labels"], self.multi_label)

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """See `Task.items`: each row is an item; multi-label: each label of a row, with the classes no and yes.

        Labels may be soft, float [rows, labels], if rows are mixed.
        """
        logits, labels = self.forward(model, batch).float(), batch["labels"]
        rows = torch.arange(len(logits), device=logits.device)
        if not self.multi_label:
            return Items(logits, labels, rows, len(logits))
        yes, count = logits.flatten(), logits.shape[1]
        shares = labels.float().flatten()
        return Items(
            torch.stack([torch.zeros_like(yes), yes], dim=1),  # whose softmax is the sigmoid of `yes`
            torch.stack([1 - shares, shares], dim=1),
            rows.repeat_interleave(count),
            len(logits),
            scale=1 / count,
        )

    def mixed_labels(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """See `Task.mixed_labels`: soft labels, float [rows, labels]."""
        if not self.multi_label:
            classes = len(self.label_map.names)
            first, second = (functional.one_hot(labels, classes).float() for labels in (first, second))
        return weights[:, None] * first + (1 - weights[:, None]) * second

    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Task.predict_batch`: `logits` float32 [rows, labels], and `loss` [rows] if the batch has labels."""
        logits = self.forward(model, batch).float()
        outputs = {"logits": logits}
        if "labels" in batch:
            outputs["loss"] = classification_losses(logits, batch["labels"], self.multi_label)
        return outputs
