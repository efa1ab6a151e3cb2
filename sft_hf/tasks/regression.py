"""Regression: models of all modalities that predict one number or several for each row.

Training standardizes each target by its mean and standard deviation in train, so that learning rates do not depend on
units and several targets have equal weight. The loss of a row is the mean squared error over its standardized targets:
always answering the mean has a loss of 1. After training, scale and mean are folded into the weights of the output
layer. The saved model is therefore a plain Transformers model with `problem_type: regression`, and its outputs are
predictions in the units of the data. (A layer without a bias cannot represent the mean: then targets are only divided
by their root mean square.)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.recipe.component_settings import REGRESSION
from sft_hf.data.examples import Examples
from sft_hf.data.labels.reading import is_unlabelled
from sft_hf.data.labels.targets import check_spread, check_targets, quintiles, read_targets, target_names
from sft_hf.models.output_layers import find_output_layers, have_bias, rescale, start_anew
from sft_hf.tasks.base import Batch, Items
from sft_hf.tasks.classification import ClassifierTask, SettingsT
from sft_hf.tasks.regression_scorer import RegressionScorer
from sft_hf.tasks.target_scale import Scale, findings_on_scored, findings_on_train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source
    from sft_hf.data.findings import Finding

log = logging.getLogger("sft_hf")

FAR_FROM_ZERO = 3.0  # standard deviations: a mean further from 0 is hard to learn without a bias


class RegressionTask(ClassifierTask[SettingsT]):
    """Mixin that makes a classifier predict numbers; list it before the classifier in the bases of a class."""

    scorer: RegressionScorer  # type: ignore[assignment]
    multi_label = False  # type: ignore[assignment]
    model_kind = REGRESSION  # type: ignore[assignment]
    no_items = "regression has numbers to predict, and no classes"
    predict_precision = "no"
    scale: Scale
    units: Scale
    """Conversion from training outputs to the targets' units: the scale, or the part of it that can be folded."""

    folded = False
    """Whether the model's outputs are already in the targets' units."""

    @property
    def names(self) -> list[str]:
        """The names of the targets."""
        return self.scorer.names

    # --- targets -------------------------------------------------------------------------------------------------

    def fit_labels(self, train: Any, where: str, kind: str, config: Any) -> None:
        """Learn the number of targets and their scale from the training rows.

        Raises DataError for targets that cannot be used, RecipeError for settings that do not apply to regression.
        """
        if self.recipe.eval.baseline == "probe":
            raise RecipeError("eval.baseline: a probe is a classifier, and this is regression; use auto or none")
        data = self.recipe.data
        if data.label_separator is not None or data.merge_similar_labels:
            key = "label_separator" if data.label_separator is not None else "merge_similar_labels"
            raise RecipeError(f"data.{key}: is about names of labels, and this is regression; leave it out")
        found = read_targets(train, data.target_column)
        check_targets(found, data.target_column, where, skip=self._skips)
        label_column: Any = data.label_column
        names = target_names(label_column, data.label_names, found.values.shape[1])
        check_spread(found.values, names, where)
        self.scale = self.units = Scale.of(found.values)
        self.scorer = RegressionScorer(names, self.scale)
        spread = ", ".join(
            f"{name}: mean {mean:.4g}, standard deviation {deviation:.4g}"
            for name, mean, deviation in zip(names, self.scale.mean, self.scale.deviation, strict=True)
        )
        log.info("regression: %s", spread)

    @property
    def _skips(self) -> bool:
        return self.recipe.data.on_bad_row == "skip"

    def head_config(self) -> dict[str, Any]:
        """See `ClassifierTask.head_config`."""
        return {**super().head_config(), "problem_type": REGRESSION}

    def identity(self) -> dict[str, Any]:
        """See `Task.identity`: the targets and their scale."""
        return {"targets": self.names, "mean": self.scale.mean.tolist(), "deviation": self.scale.deviation.tolist()}

    def _expect_head(self, config: Any) -> None:
        """Do nothing: the output layer is chosen in `build_model`."""

    def read_head(self, config: Any) -> None:
        """Read targets and scale from the config of a trained model. Raises CheckpointError."""
        if config.problem_type != REGRESSION:
            raise CheckpointError(
                f"config.json: problem_type is {config.problem_type!r}, and the run's is {REGRESSION}"
            )
        self.scale = self.units = Scale.read(config)
        self.scorer = RegressionScorer([config.id2label[index] for index in sorted(config.id2label)], self.scale)
        self.folded = True

    def labelled_rows(self, split: Dataset, where: str) -> tuple[Dataset, list[Any] | None, list[str]]:
        """See `ClassifierTask.labelled_rows`."""
        column = self.recipe.data.target_column
        if is_unlabelled(split, column):
            return split, None, []
        found = read_targets(split, column, len(self.names))
        notes = check_targets(found, column, where, skip=self._skips)
        if found.problems:
            split = split.select(found.rows)
        return split, found.values.tolist(), notes

    def strata(self, train: Dataset) -> list[Any] | None:
        """See `Task.strata`: the quintile of a single target; rows without a target are a separate group."""
        found = read_targets(train, self.recipe.data.target_column)
        if found.values.shape[1] > 1 or len(found.rows) < 2:
            return None
        groups = np.full(len(train), 5)
        groups[found.rows] = quintiles(found.values[:, 0])
        return [int(group) for group in groups]

    def label_tensor(self, labels: list[Any]) -> Tensor:
        """Return standardized targets for the loss, float32 [rows, targets]."""
        values = np.array(labels, dtype=np.float64).reshape(len(labels), len(self.names))
        return torch.from_numpy(((values - self.scale.mean) / self.scale.deviation).astype(np.float32))

    def findings(self, examples: Mapping[str, Examples]) -> list[Finding]:
        """See `Task.findings`: the distribution of the targets."""
        values = {role: self.scorer.array(split.references) for role, split in examples.items() if split.labelled}
        found: list[Finding] = []
        if "train" in values:
            found += findings_on_train(self.names, values["train"], examples["train"].row_ids)
        for role in ("validation", "test"):
            if role in values:
                found += findings_on_scored(role, self.names, values[role], self.scale, values.get("train"))
        return found

    # --- the model -----------------------------------------------------------------------------------------------

    def example_batch(self) -> Batch:
        """Return a batch of one arbitrary row without targets, on the CPU."""
        raise NotImplementedError

    def build_model(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """See `Task.build_model`. Raises CheckpointError for a model without a linear output layer."""
        trained = self._trained_before(getattr(self, "config", None))
        model = super().build_model(source, section)  # type: ignore[safe-super]
        if self.folded:
            return model
        batch = self.example_batch()
        self.output_layers = find_output_layers(model, len(self.names), lambda: self.forward(model, batch))
        self.units = self.scale
        if not have_bias(model, self.output_layers):
            self.units = self.scale.without_mean()
            self._warn_of_far_means(model)
        kept = self._keeps_outputs(model)
        if kept and trained:
            log.info("the pretrained model predicts numbers already: its output layer is kept and fine-tuned")
            self._rescale(model, 1 / self.units.deviation, -self.units.mean / self.units.deviation)
        elif kept:
            start_anew(model, self.output_layers)
        return model

    def _warn_of_far_means(self, model: nn.Module) -> None:
        for name, mean, deviation in zip(self.names, self.scale.mean, self.scale.deviation, strict=True):
            if abs(mean) > FAR_FROM_ZERO * deviation:
                log.warning(
                    "the output layer of %s has no bias, so it cannot fit target %r, whose mean is far from 0 "
                    "(mean %.4g, standard deviation %.4g): subtract %.4g from its values, or use another model",
                    type(model).__name__,
                    name,
                    mean,
                    deviation,
                    mean,
                )

    def _trained_before(self, config: Any) -> bool:
        """Whether the pretrained model already predicts these targets, according to its config."""
        kind, number = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
        return number == len(self.names) and (kind == REGRESSION or (kind is None and number == 1))

    def _keeps_outputs(self, model: Any) -> bool:
        """Whether the output layer's weights are pretrained; those of a model on word vectors are not."""
        new = getattr(model, "new_weights", None)
        return new is not None and not any(f"{name}.weight" in new for name in self.output_layers)

    def _rescale(self, model: nn.Module, scale: np.ndarray, shift: np.ndarray) -> None:
        rescale(model, self.output_layers, torch.from_numpy(scale), torch.from_numpy(shift))

    def finish_model(self, model: nn.Module) -> None:
        """See `Task.finish_model`: converts the outputs to the targets' units."""
        self._rescale(model, self.units.deviation, self.units.mean)
        self.folded = True

    def save(self, model: Any, folder: Any) -> None:
        """See `Task.save`."""
        self.scale.write(model.config)
        super().save(model, folder)  # type: ignore[safe-super]

    # --- a batch -------------------------------------------------------------------------------------------------

    def _in_own_units(self, outputs: Tensor) -> Tensor:
        return outputs if self.folded else _times(outputs, self.units.deviation) + _like(outputs, self.units.mean)

    def _standardized(self, outputs: Tensor) -> Tensor:
        if not self.folded and self.units is self.scale:
            return outputs
        return _times(self._in_own_units(outputs) - _like(outputs, self.scale.mean), 1 / self.scale.deviation)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of each row over its standardized targets, float32 [rows]."""
        return self._losses(self.forward(model, batch).float(), batch["labels"])

    def _losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return ((self._standardized(outputs) - labels) ** 2).mean(dim=1)

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Raise NotImplementedError: regression has no items."""
        raise NotImplementedError(self.no_items)

    def mixed_labels(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """See `Task.mixed_labels`: the weighted mean of both targets."""
        return weights[:, None] * first + (1 - weights[:, None]) * second

    def predict_batch(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `logits`, float32 [rows, targets] in the targets' units, and `loss` [rows] if there are targets."""
        outputs = self.forward(model, batch).float()
        found = {"logits": self._in_own_units(outputs)}
        if "labels" in batch:
            found["loss"] = self._losses(outputs, batch["labels"])
        return found


def _like(outputs: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(outputs.device, outputs.dtype)


def _times(outputs: Tensor, values: np.ndarray) -> Tensor:
    return outputs * _like(outputs, values)
