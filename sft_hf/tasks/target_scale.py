"""The scale of regression targets, and findings on their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sft_hf.core.errors import CheckpointError, first_few
from sft_hf.data.findings import Finding

FAR = 6.0  # standard deviations from the mean, above which a training target gets a warning
FEW_VALUES = 10  # distinct integers, up to which targets may be classes


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each target in train, float64 [targets]."""

    mean: np.ndarray
    deviation: np.ndarray

    MEAN: ClassVar[str] = "target_mean"
    DEVIATION: ClassVar[str] = "target_deviation"

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Return the scale of float64 [rows, targets]."""
        return cls(values.mean(axis=0), values.std(axis=0))

    @classmethod
    def read(cls, config: Any) -> Scale:
        """Return the scale in a saved model's config. Raises CheckpointError if it is missing or invalid."""
        try:
            mean, deviation = (np.array(getattr(config, key), dtype=np.float64) for key in (cls.MEAN, cls.DEVIATION))
        except (AttributeError, TypeError, ValueError):
            mean, deviation = np.zeros(0), np.zeros(0)
        fits = mean.shape == deviation.shape == (config.num_labels,)
        if not fits or not np.isfinite(mean).all() or not (np.isfinite(deviation) & (deviation > 0)).all():
            raise CheckpointError(
                f"config.json: {cls.MEAN} and {cls.DEVIATION} must be lists of {config.num_labels} numbers"
            )
        return cls(mean, deviation)

    def write(self, config: Any) -> None:
        """Write the scale to a config."""
        setattr(config, self.MEAN, self.mean.tolist())
        setattr(config, self.DEVIATION, self.deviation.tolist())

    def without_mean(self) -> Scale:
        """Return a scale with mean 0 and the root mean square, for a layer without a bias."""
        return Scale(np.zeros_like(self.mean), np.sqrt(self.mean**2 + self.deviation**2))


def findings_on_train(names: Sequence[str], values: np.ndarray, row_ids: np.ndarray) -> list[Finding]:
    """Return findings on the training targets, float64 [rows, targets]."""
    found = []
    for name, column in zip(names, values.T, strict=True):
        mean, deviation = column.mean(), column.std()
        spread = f"{column.min():.6g} to {column.max():.6g} (mean {mean:.6g}, standard deviation {deviation:.4g})"
        found.append(Finding("note", f"train: {name!r} ranges from {spread}"))
        far = np.flatnonzero(np.abs(column - mean) > FAR * deviation)
        if len(far):
            rows = first_few([f"{column[place]:g} in row {row_ids[place]}" for place in far], 3, "rows")
            text = f"train: {name!r} is more than {FAR:g} standard deviations from its mean: {rows}; check these rows"
            found.append(Finding("warning", text))
        different = np.unique(column)
        if len(different) <= FEW_VALUES and (different == np.round(different)).all():
            text = f"train: {name!r} has only {len(different)} different values, all whole numbers"
            found.append(Finding("note", f"{text}; if these are classes, set task.problem_type: auto"))
    return found


def findings_on_scored(
    role: str, names: Sequence[str], values: np.ndarray, scale: Scale, train: np.ndarray | None
) -> list[Finding]:
    """Return findings on the targets of a scored split, float64 [rows, targets].

    `train` are the targets of the training rows; None for a stream.
    """
    found = []
    means = scale.mean if train is None else train.mean(axis=0)
    for index, name in enumerate(names):
        column = values[:, index]
        if train is not None:
            low, high = train[:, index].min(), train[:, index].max()
            if outside := int(((column < low) | (column > high)).sum()):
                text = f"{role}: {name!r} is outside the range of train ({low:.6g} to {high:.6g})"
                found.append(Finding("note", f"{text} in {outside} of {len(column)} rows"))
        error = float(np.sqrt(((column - means[index]) ** 2).mean()))
        text = f"{role}: always answering the mean of train would have an RMSE of {error:.4g}"
        found.append(Finding("note", text if len(names) == 1 else f"{text} for {name!r}"))
    return found
