"""CutMix: paste a box of one image into another."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.techniques.base import Loss, LossParts, Technique, TrainBatch
from sft_hf.techniques.regularization.settings import CutmixSettings

SALT = 2


class Box(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of an image in pixels, ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int


def draw_box(height: int, width: int, share: float, generator: np.random.Generator) -> Box:
    """Return a box with the image's aspect ratio around a random pixel, clipped at the image's edges.

    Args:
        height, width: of the image, in pixels.
        share: the fraction of the image's area of the unclipped box, 1 - lambda.

    Source: S. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
    equation 2.
    """
    side = math.sqrt(share)
    tall, wide = int(height * side), int(width * side)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    top, left = y - tall // 2, x - wide // 2
    return Box(max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width))


def pasted(first: Tensor, second: Tensor, boxes: list[Box]) -> tuple[Tensor, Tensor]:
    """Return each image of `first` with a box pasted from `second`, and the fraction of its area outside of the box.

    Args:
        first, second: float [rows, channels, height, width].
        boxes: one for each row.

    Returns:
        Images with the shape of `first`, and float32 [rows].

    Source: S. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
    equation 1 (x = M x_a + (1 - M) x_b), with lambda from the clipped box, as in algorithm A1.
    """
    height, width = first.shape[-2:]
    inside = torch.zeros((len(first), 1, height, width), dtype=torch.bool, device=first.device)
    for mask, box in zip(inside, boxes, strict=True):
        mask[:, box.top : box.bottom, box.left : box.right] = True
    own = 1 - inside.float().mean(dim=(1, 2, 3))
    return torch.where(inside, second, first), own


class Cutmix(Technique[CutmixSettings]):
    """Paste a box from another image into each image, and mix the labels by area.

    Unlike mixup, it keeps images locally natural and makes the model use the whole image. Needs more epochs than plain
    training, like any stronger augmentation.
    """

    paper = (
        "S. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019, "
        "equations 1 and 2"
    )
    order = 90

    def wrap_loss(self, loss: Loss, parts: LossParts) -> Loss:
        """See `pasted`; labels are mixed by area."""

        def cutting(model: nn.Module, batch: TrainBatch) -> Tensor:
            assert batch.partner is not None
            name, own = parts.task.as_embeddings(model, batch.inputs)
            _, other = parts.task.as_embeddings(model, batch.partner)
            pictures, weights = pasted(own[name], other[name], self._boxes(batch, own[name]))
            labels = parts.task.mixed_labels(own["labels"], other["labels"], weights)
            assert labels is not None
            return loss(model, batch.with_inputs({**own, name: pictures, "labels": labels}))

        return cutting

    def _boxes(self, batch: TrainBatch, pictures: Tensor) -> list[Box]:
        height, width = pictures.shape[-2:]
        boxes = []
        for generator in batch.generators(SALT):
            cuts = generator.random() < self.settings.probability
            kept = generator.beta(self.settings.alpha, self.settings.alpha) if cuts else 1.0
            boxes.append(draw_box(height, width, 1 - kept, generator))
        return boxes
