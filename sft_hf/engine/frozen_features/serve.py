"""Rows, data and task for a training loop whose forward passes start at the end of the model's frozen part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sft_hf.core.errors import TrainingError
from sft_hf.data.examples import Examples
from sft_hf.engine.batches import StepBatch
from sft_hf.engine.frozen_features.replay import Replay
from sft_hf.engine.frozen_features.trace import Declined
from sft_hf.tasks.base import Batch, Items

ROW = "frozen_features_row"  # in features and batches: which row of the training set


class ServedRows(Sequence[dict[str, Any]]):
    """Rows without the features that only the frozen part reads, each with its index."""

    def __init__(self, examples: Examples) -> None:
        self.features = examples.features if examples.blank is None else examples.blank

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        return {**self.features[index], ROW: index}


class ServedSet:
    """The training set, with rows for `ServedTask`."""

    def __init__(self, data: Any, examples: Examples) -> None:
        self.data, self.examples = data, replace(examples, features=ServedRows(examples))

    def epoch(self, index: int) -> tuple[Examples, list[StepBatch]]:
        """See `sft_hf.engine.loop.TrainingData`."""
        return self.examples, self.data.epoch(index)[1]


class ServedTask:
    """Wraps a task for forward passes that start at the end of the frozen part."""

    def __init__(self, task: Any, replay: Replay, fetch: Callable[[int], Sequence[Tensor]]) -> None:
        self._task, self._replay, self._fetch = task, replay, fetch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def collate(self, features: list[dict[str, Any]]) -> Batch:
        """See `Task.collate`; also stores the row indices in the batch."""
        rows = [{name: value for name, value in row.items() if name != ROW} for row in features]
        batch: Batch = self._task.collate(rows)
        return {**batch, ROW: torch.tensor([row[ROW] for row in features])}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Task.losses`."""
        losses: Tensor = self._served(self._task.losses, model, batch)
        return losses

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """See `Task.items`."""
        items: Items = self._served(self._task.items, model, batch)
        return items

    def _served(self, forward: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch) -> Any:
        rows = [self._fetch(row) for row in batch[ROW].tolist()]
        plain = {name: tensor for name, tensor in batch.items() if name != ROW}
        try:
            return self._replay(lambda: forward(model, plain), rows)
        except Declined as error:
            raise TrainingError(f"{error}; set train.frozen_features: off") from error
