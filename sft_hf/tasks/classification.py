"""What every classifier shares, whatever it reads: labels, per-row losses, scores, decisions.

Single label: softmax and cross-entropy. Multi-label: a sigmoid per label, binary cross-entropy averaged over labels,
and one decision threshold that is chosen on validation.
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
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.data.examples import Examples
from sft_hf.data.findings import Finding
from sft_hf.data.labels.label_map import LabelMap, build_label_map, encode_labels, is_multi_label
from sft_hf.data.labels.reading import LabelReading, is_unlabelled, read_labels, read_rows
from sft_hf.models.trained_heads import HeadRows, in_own_order, label_order, open_config
from sft_hf.tasks.base import Batch, Items, Task
from sft_hf.tasks.saved_outputs import of_classifier
from sft_hf.tasks.scoring.confidence import CLOSEST, Confidence
from sft_hf.tasks.scoring.inputs import apply_threshold

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.core.run.outputs import SplitOutputs
    from sft_hf.core.sources.sources import Source
    from sft_hf.data.loading.roles import Splits

SettingsT = TypeVar("SettingsT", bound=TaskSettings)

FEW_ROWS = 10  # training rows of a label, below which it is worth a word
CLOSE = 1 / 8  # of the largest logit: bf16 moved a difference by up to 1/30 of it, in MiniLM-L6 on Reuters R8
UNBALANCED = 10  # rows of the largest label to one of the smallest, likewise


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
    """Labels in, labels out; subclasses say how a row becomes model inputs."""

    label_map: LabelMap
    multi_label: bool = False
    threshold: float = 0.5
    reading: LabelReading | None = None
    head_rows: HeadRows | None = None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.set_multi_label(False)

    def set_multi_label(self, multi_label: bool) -> None:
        """Choose between one label per row and any number."""
        self.multi_label = multi_label
        self.model_kind = "multi_label" if multi_label else ""
        self.primary_metric = "micro_f1" if multi_label else "accuracy"

    def read_labels(self, splits: Splits) -> Splits:
        """See `Task.read_labels`."""
        kind = getattr(self.settings, "problem_type", "auto")
        splits, self.reading = read_labels(splits, self.recipe.data, kind)
        return splits

    def read_rows(self, rows: Dataset, where: str) -> Dataset:
        """See `Task.read_rows`."""
        return rows if self.reading is None else read_rows(rows, where, self.recipe.data, self.reading)

    def encode(self, split: Dataset, where: str) -> list[Any] | None:
        """Return each row's label number, or list of them; None for an unlabelled split. Raises DataError."""
        column = self.recipe.data.target_column
        if is_unlabelled(split, column):
            return None
        return encode_labels(split, column, self.label_map, where, self.multi_label)

    def fit_labels(self, train: Any, where: str, kind: str, config: Any) -> None:
        """Learn the labels, and how many a row has, from the training rows.

        Args:
            train: the rows, a data set or a stream.
            where: they come from, for errors.
            kind: `task.problem_type`.
            config: of the checkpoint, whose own order of the same labels is kept; None: it has none.

        Raises DataError for labels that cannot be used.
        """
        data = self.recipe.data
        if kind != "auto":
            self.set_multi_label(kind == "multi_label_classification")
        elif self.reading is not None:
            self.set_multi_label(self.reading.several)
        else:
            self.set_multi_label(is_multi_label(train, data.target_column))
        if data.label_names is None and self.reading is not None and self.reading.names:
            self.label_map = LabelMap(self.reading.names)
        else:
            self.label_map = build_label_map(train, data.target_column, data.label_names, where, self.multi_label)
        own = label_order(config)
        if data.label_names is None and (names := in_own_order(self.label_map.names, own)) != self.label_map.names:
            self.label_map = LabelMap(names)
        self._expect_head(own)

    def head_config(self) -> dict[str, Any]:
        """The fields of a Transformers config that describe this head."""
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
        """See `Task.findings`: how the labels are spread over the rows."""
        counts = {role: self._counts(split.references) for role, split in examples.items() if split.labelled}
        found = []
        if "train" in counts:
            found += self._rare_labels(counts["train"])
        for role in ("validation", "test"):
            if role not in counts:
                continue
            if missing := [name for name, count in zip(self.label_map.names, counts[role], strict=True) if not count]:
                found.append(Finding("note", f"{role} has no row of {_listed(missing)}: nothing is measured for these"))
            if not self.multi_label:
                # Of train, as the baseline's: the most frequent label of these rows may be another one.
                most = int(counts.get("train", counts[role]).argmax())
                share = counts[role][most] / counts[role].sum()
                name = self.label_map.names[most]
                whose = ", the most frequent label of train," if "train" in counts else ""
                text = f"{role}: always answering {name!r}{whose} would have accuracy {share:.4f}"
                found.append(Finding("note", text))
        return found

    def _counts(self, references: Sequence[Any]) -> np.ndarray:
        """Rows of each label."""
        flat = [label for labels in references for label in labels] if self.multi_label else list(references)
        return np.bincount(np.asarray(flat, dtype=np.int64), minlength=len(self.label_map.names))

    def _rare_labels(self, counts: np.ndarray) -> list[Finding]:
        found = []
        named = list(zip(self.label_map.names, counts.tolist(), strict=True))
        if unseen := [name for name, count in named if not count]:
            found.append(
                Finding("warning", f"train has no row of {_listed(unseen)}: the model cannot learn what it never sees")
            )
        if rare := [f"{name} ({count})" for name, count in named if 0 < count < FEW_ROWS]:
            found.append(Finding("warning", f"train has fewer than {FEW_ROWS} rows of {_listed(rare)}; add some"))
        present = counts[counts > 0]
        if len(present) and present.max() > UNBALANCED * present.min():
            ratio = present.max() / present.min()
            found.append(
                Finding(
                    "note", f"train is unbalanced: the largest label has {ratio:.0f} times the rows of the smallest"
                )
            )
        return found

    def expect_checkpoint(self, source: Source) -> None:
        """See `Task.expect_checkpoint`: what its head was trained for."""
        self._expect_head(label_order(open_config(source, self.recipe.model.architecture)))

    def _expect_head(self, own: tuple[str, ...]) -> None:
        self.head_rows = HeadRows(own, self.label_map.names, chosen=self.recipe.data.label_names is not None)

    def read_head(self, config: Any) -> None:
        """Take labels, kind of problem and threshold from the config of a trained model."""
        names = tuple(config.id2label[index] for index in sorted(config.id2label))
        self.label_map = LabelMap(names, "label_names" if self.recipe.data.label_names else "train")
        self.set_multi_label(config.problem_type == "multi_label_classification")
        self.threshold = float(getattr(config, "decision_threshold", 0.5))
        self.confidence = Confidence.of(config)

    def labelled_rows(self, split: Dataset, where: str) -> tuple[Dataset, list[Any] | None, list[str]]:
        """Return the rows of a split that can be used, their labels as `encode` has them, and notes on rows left out.

        Raises DataError naming the row.
        """
        return split, self.encode(split, where), []

    def label_tensor(self, labels: list[Any]) -> Tensor:
        """Encoded labels as a tensor: int64 [rows], or float [rows, labels] of 0 and 1 for multi-label."""
        if not self.multi_label:
            return torch.tensor(labels, dtype=torch.int64)
        return torch.from_numpy(self._indicator(labels))

    def _indicator(self, labels: Any) -> np.ndarray:
        matrix = np.zeros((len(labels), len(self.label_map.names)), dtype=np.float32)
        for row, indices in enumerate(labels):
            matrix[row, list(indices)] = 1.0
        return matrix

    def item_counts(self, batch: Batch) -> Tensor:
        """One item per row."""
        return torch.ones(len(batch["labels"]), dtype=torch.float32, device=batch["labels"].device)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [rows, labels] of a batch, its labels left out."""
        logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        return logits

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each row, float32 [rows]."""
        return classification_losses(self.forward(model, batch), batch["labels"], self.multi_label)

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """See `Task.items`: a row is an item, or each of its labels is, multi-label, with the classes no and yes.

        Labels may be shares, float [rows, labels], as where two rows are mixed.
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
        """See `Task.mixed_labels`: float [rows, labels], each label's share."""
        if not self.multi_label:
            classes = len(self.label_map.names)
            first, second = (functional.one_hot(labels, classes).float() for labels in (first, second))
        return weights[:, None] * first + (1 - weights[:, None]) * second

    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`logits` float32 [rows, labels], and `loss` [rows] if the batch has labels."""
        logits = self.forward(model, batch).float()
        outputs = {"logits": logits}
        if "labels" in batch:
            outputs["loss"] = classification_losses(logits, batch["labels"], self.multi_label)
        return outputs

    def close_calls(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """See `Task.close_calls`: what decides an answer is nearer to its border than `CLOSE` of the largest logit.

        That is the two best labels, or each label and the decision threshold, or the confidence and that of abstention.
        """
        logits = outputs["logits"].double()
        if self.multi_label:
            margins = logits - self._border(self.threshold)
        else:
            best = logits.topk(min(2, logits.shape[1]), dim=1).values
            margins = best[:, :1] - best[:, 1:]
        abstains_below = self.confidence.threshold
        if abstains_below is not None and abstains_below < 1:
            confidences = torch.from_numpy(self.probabilities(outputs)).amax(dim=1, keepdim=True)
            margins = torch.cat([margins, self._border(confidences) - self._border(abstains_below)], dim=1)
        return (margins.abs() < CLOSE * logits.abs().amax(dim=1, keepdim=True)).any(dim=1)

    def _border(self, probability: Tensor | float) -> Tensor:
        """The logit at which a label of two has a probability."""
        return torch.logit(torch.as_tensor(probability, dtype=torch.float64), CLOSEST) * self.confidence.temperature

    def probabilities(self, outputs: dict[str, Tensor]) -> np.ndarray:
        """Softmax (single label) or sigmoid (multi-label) of the logits over T, float32 [rows, labels]."""
        logits = self.confidence.scaled(outputs["logits"])
        scores = torch.sigmoid(logits) if self.multi_label else torch.softmax(logits, dim=-1)
        return scores.numpy()

    def class_probabilities(self, outputs: dict[str, Tensor]) -> list[dict[str, float]] | None:
        """See `Task.class_probabilities`; multi-label, the probabilities of a row need not sum to 1."""
        names = self.label_map.names
        return [dict(zip(names, row, strict=True)) for row in self.probabilities(outputs).tolist()]

    def metric_names(self) -> list[str]:
        """See `Task.metric_names`."""
        own = ["micro_f1", "macro_f1", "map", "subset_accuracy"] if self.multi_label else ["accuracy", "macro_f1"]
        return [*own, "loss"]

    def tune(self, outputs: dict[str, Tensor], examples: Examples) -> None:
        """Multi-label: the threshold with the best micro-F1."""
        if self.multi_label:
            from sft_hf.tasks.scoring.classification import choose_threshold  # as in `score`

            self.threshold = choose_threshold(self.probabilities(outputs), self._indicator(examples.references))

    def score(self, outputs: dict[str, Tensor], examples: Examples, confidence_samples: int = 0) -> dict[str, Any]:
        """Accuracy and macro-F1, or micro-F1, macro-F1 and mAP; `loss`; with intervals and per-class on request."""
        # Two seconds, which neither `predict` nor the first step of a training need wait for.
        from sft_hf.tasks.scoring.classification import multi_label_metrics, single_label_metrics

        scores = self.probabilities(outputs)
        names = list(self.label_map.names)
        if self.multi_label:
            metrics = multi_label_metrics(
                scores,
                self._indicator(examples.references),
                self.threshold,
                names,
                confidence_samples=confidence_samples,
            )
        else:
            references = np.asarray(examples.references, dtype=np.int64)
            metrics = single_label_metrics(
                scores.argmax(axis=1), references, names, confidence_samples=confidence_samples
            )
        if confidence_samples:
            metrics |= self.confidence.metrics(*self._judged(scores, examples.references))
        return {"loss": float(outputs["loss"].double().mean()), **metrics}

    def judged(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """See `Task.judged`. Of the most probable label: whether it is the row's label, or one of its labels."""
        return self._judged(self.probabilities(outputs), examples.references)

    def _judged(self, scores: np.ndarray, references: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        best = scores.argmax(axis=1)
        confidences = np.take_along_axis(scores, best[:, None], axis=1)[:, 0].astype(np.float64)
        if self.multi_label:
            right = np.array([label in labels for label, labels in zip(best.tolist(), references, strict=True)])
        else:
            right = best == np.asarray(references)
        return confidences, right

    def set_temperature(self, temperature: float) -> None:
        """See `Task.set_temperature`: multi-label, the decision threshold too."""
        super().set_temperature(temperature)
        if self.multi_label:
            (scaled,) = self.confidence.of_probabilities(torch.tensor([self.threshold], dtype=torch.float64))
            self.threshold = min(max(scaled, CLOSEST), 1 - CLOSEST)

    def calibration_items(self, outputs: dict[str, Tensor], examples: Examples) -> tuple[Tensor, Tensor]:
        """See `Task.calibration_items`: rows, or multi-label each label of each row, with the classes no and yes."""
        logits = outputs["logits"]
        if not self.multi_label:
            return logits, torch.tensor(list(examples.references), dtype=torch.int64)
        yes = logits.flatten()
        right = torch.from_numpy(self._indicator(examples.references)).flatten().long()
        return torch.stack([torch.zeros_like(yes), yes], dim=1), right

    def constant_answer(self, train: Sequence[Any], references: Sequence[Any], confidence_samples: int) -> Any:
        """See `Task.constant_answer`: the label that most training rows have."""
        from sft_hf.tasks.scoring.classification import multi_label_metrics, single_label_metrics  # as in `score`

        label = int(self._counts(train).argmax())
        names, rows = list(self.label_map.names), len(references)
        options = {"confidence_samples": confidence_samples}
        if self.multi_label:
            scores = np.zeros((rows, len(names)), dtype=np.float32)
            scores[:, label] = 1.0
            metrics = multi_label_metrics(scores, self._indicator(references), 0.5, names, **options)
        else:
            answers, truth = np.full(rows, label, dtype=np.int64), np.asarray(references, dtype=np.int64)
            metrics = single_label_metrics(answers, truth, names, **options)
        return f"always answering {names[label]!r}, the most frequent label of train", metrics

    def label_counts(self, references: Sequence[Any]) -> dict[str, int] | None:
        """See `Task.label_counts`."""
        return dict(zip(self.label_map.names, self._counts(references).tolist(), strict=True))

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """`prediction`, a label (or the list of labels above the threshold), and `confidence`, its probability.

        Multi-label rows state the highest probability as confidence, and `scores` of the labels predicted.
        """
        names = self.label_map.names
        rows = []
        for scores in self.probabilities(outputs):
            best = int(scores.argmax())
            if not self.multi_label:
                rows.append(self.confidence.told({"prediction": names[best], "confidence": float(scores[best])}))
                continue
            above = np.flatnonzero(apply_threshold(scores[None], self.threshold)[0])
            chosen = {names[index]: float(scores[index]) for index in above}
            row = {"prediction": list(chosen), "confidence": float(scores[best]), "scores": chosen}
            rows.append(self.confidence.told(row))
        return rows

    def saved_outputs(self, outputs: dict[str, Tensor], examples: Examples, split: str) -> SplitOutputs:
        """See `Task.saved_outputs`: the logits, before any temperature."""
        threshold = self.threshold if self.multi_label else None
        names = self.label_map.names
        return of_classifier(outputs["logits"], examples, split, names, self.confidence, threshold)

    def reference(self, value: Any) -> Any:
        """The label's name, or the list of names."""
        names = self.label_map.names
        return [names[index] for index in value] if self.multi_label else names[value]
