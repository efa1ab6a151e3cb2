"""Mixup of images, token embeddings or spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sft_hf.tasks.base import Batch
from sft_hf.techniques.base import Loss, LossParts, Technique, TrainBatch
from sft_hf.techniques.regularization.settings import MixupSettings

SALT = 1


def mixed(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Return w a + (1 - w) b for each row.

    Args:
        first, second: float [rows, ...].
        weights: float [rows], w.

    Source: H. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, section 2.
    """
    shape = (-1, *[1] * (first.ndim - 1))
    w = weights.to(first.dtype).view(shape)
    return w * first + (1 - w) * second


class Mixup(Technique[MixupSettings]):
    """Train on mixtures of two rows and of their targets."""

    paper = (
        "H. Zhang et al., mixup, 2018, section 2; of token vectors H. Guo et al., Augmenting Data with Mixup for "
        "Sentence Classification, 2019 (wordMixup); of spectrograms L. Meng et al., MixSpeech, 2021, the mixed loss"
    )
    order = 90

    def wrap_loss(self, loss: Loss, parts: LossParts) -> Loss:
        """Mix the inputs, and the labels or (for transcripts) the losses of both rows."""

        def mixing(model: nn.Module, batch: TrainBatch) -> Tensor:
            assert batch.partner is not None
            weights = self._weights(batch)
            name, own = parts.task.as_embeddings(model, batch.inputs)
            _, other = parts.task.as_embeddings(model, batch.partner)
            inputs = {**own, **_masks(own, other, weights), name: mixed(own[name], other[name], weights)}
            labels = parts.task.mixed_labels(own["labels"], other["labels"], weights)
            if labels is not None:
                return loss(model, batch.with_inputs({**inputs, "labels": labels}))
            second = {key: tensor for key, tensor in other.items() if key in ("labels", "decoder_input_ids")}
            first = loss(model, batch.with_inputs(inputs))
            return mixed(first, loss(model, batch.with_inputs({**inputs, **second})), weights)

        return mixing

    def _weights(self, batch: TrainBatch) -> Tensor:
        """Draw the weight of each row in its mixture, float32 [rows]; at least 0.5, so that the row dominates."""
        drawn = []
        for generator in batch.generators(SALT):
            mixes = generator.random() < self.settings.probability
            weight = generator.beta(self.settings.alpha, self.settings.alpha)
            drawn.append(max(weight, 1 - weight) if mixes else 1.0)
        return torch.tensor(drawn, dtype=torch.float32, device=batch.inputs["labels"].device)


def _masks(own: Batch, other: Batch, weights: Tensor) -> Batch:
    """Return the union of both rows' masks; after the end of a text, the token types of its partner are used."""
    masks: Batch = {}
    if "token_type_ids" in own:
        alone = (weights == 1)[:, None] | own["attention_mask"].bool()
        masks["token_type_ids"] = torch.where(alone, own["token_type_ids"], other["token_type_ids"])
    for name in ("attention_mask", "input_lengths", "frames"):
        if name in own and name in other:
            alone = (weights == 1).view(-1, *[1] * (own[name].ndim - 1))
            masks[name] = torch.where(alone, own[name], torch.maximum(own[name], other[name]))
    return masks
