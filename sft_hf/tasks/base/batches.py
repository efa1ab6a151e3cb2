"""Batches, and the logits and targets of their items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = dict[str, Tensor]
"""Tensors whose first dimension is the row, on the device of the model."""


@dataclass(frozen=True)
class Items:
    """Logits and targets of the items of a forward pass: classified rows, or tokens to be written.

    Attributes:
        logits: float32 [items, classes].
        targets: int64 [items], or float32 [items, classes]: the share of each class.
        rows: int64 [items], the row of each item, ascending.
        num_rows: number of rows in the batch.
        scale: factor of every item's loss: 1 / labels if a row's loss is the mean over labels.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    num_rows: int
    scale: float = 1.0

    def row_losses(self, criterion: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of the losses of each row's items, float32 [rows].

        Args:
            criterion: logits -> [items, classes], the loss of an item for each possible class.
        """
        losses = criterion(self.logits)
        if self.targets.ndim == 1:
            chosen = losses.gather(1, self.targets[:, None])[:, 0]
        else:
            chosen = (losses * self.targets).sum(dim=1)
        if len(self.rows) == self.num_rows:  # every row has one item
            return chosen * self.scale
        return chosen.new_zeros(self.num_rows).index_add(0, self.rows, chosen) * self.scale


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def pinned(batch: Batch, device: torch.device) -> Batch:
    """Return the batch in pinned memory, so that the copy to the GPU is asynchronous; unchanged for other devices."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # the default in a new thread is the first device
        return {name: tensor if _is_expanded(tensor) else tensor.pin_memory() for name, tensor in batch.items()}


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() < tensor.nbytes
