"""CutMix: boxes of the right area, pixels of the right picture, labels shared by area."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_runs import briefly

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.base import LossParts, TrainBatch
from sft_hf.techniques.regularization.cutmix import Cutmix, draw_box, pasted
from sft_hf.techniques.regularization.settings import CutmixSettings


def test_a_box_has_the_share_and_proportions_asked_for_and_is_cut_off_at_the_edges():
    generator = np.random.default_rng(0)
    whole = 0
    for _ in range(500):
        share = generator.random()
        box = draw_box(60, 90, share, generator)
        tall, wide = box.bottom - box.top, box.right - box.left
        # the official code: cut_w = int(W * sqrt(1 - lam)), and the same for the height
        most = (int(60 * share**0.5), int(90 * share**0.5))
        assert 0 <= box.top <= box.bottom <= 60 and 0 <= box.left <= box.right <= 90
        assert tall <= most[0] and wide <= most[1]
        if box.top > 0 and box.bottom < 60 and box.left > 0 and box.right < 90:
            assert (tall, wide) == most
            whole += 1
    assert whole > 50


def test_every_pixel_of_the_picture_is_the_boxs_middle_as_often():
    generator = np.random.default_rng(0)
    counts = np.zeros((4, 5))
    for _ in range(4000):
        box = draw_box(4, 5, 1 / 16, generator)  # of one pixel
        counts[box.top, box.left] += (box.bottom - box.top, box.right - box.left) == (1, 1)
    assert counts.sum() == 4000 and counts.min() > 120


def test_pixels_and_shares_against_a_loop():
    generator = np.random.default_rng(1)
    first, second = (torch.rand(5, 3, 8, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    boxes = [draw_box(8, 6, share, generator) for share in (0.0, 0.2, 0.5, 0.9, 1.0)]
    pictures, own = pasted(first, second, boxes)
    for row, (top, bottom, left, right) in enumerate(boxes):
        kept = 0
        for y in range(8):
            for x in range(6):
                inside = top <= y < bottom and left <= x < right
                kept += not inside
                assert torch.equal(pictures[row, :, y, x], (second if inside else first)[row, :, y, x])
        assert own[row] == pytest.approx(kept / 48)


class Pictures:
    """A task of which only what CutMix asks is there."""

    def as_embeddings(self, model, batch):
        return "pixel_values", batch

    def mixed_labels(self, first, second, weights):
        one_hot = torch.nn.functional.one_hot
        return weights[:, None] * one_hot(first, 2) + (1 - weights[:, None]) * one_hot(second, 2)


def seen(settings, keys):
    """What the loss inside gets of zeros of class 0 whose partners are ones of class 1."""
    found = {}

    def loss(model, batch):
        assert batch.partner is None
        found.update(batch.inputs)
        return torch.zeros(len(keys))

    technique = Cutmix(CutmixSettings(**settings), None)
    size = (len(keys), 3, 16, 16)
    own = {"pixel_values": torch.zeros(size), "labels": torch.zeros(len(keys), dtype=torch.int64)}
    other = {"pixel_values": torch.ones(size), "labels": torch.ones(len(keys), dtype=torch.int64)}
    technique.wrap_loss(loss, LossParts(Pictures(), None))(None, TrainBatch(own, other, keys))
    return found


def test_the_label_is_shared_as_the_area_is():
    found = seen({}, tuple(range(200)))
    area = found["pixel_values"].mean(dim=(1, 2, 3))
    torch.testing.assert_close(found["labels"][:, 1], area)
    torch.testing.assert_close(found["labels"].sum(dim=1), torch.ones(200))
    assert area.min() < 0.05 and area.max() > 0.6  # Beta(1, 1): all sizes
    half = seen({"probability": 0.5}, tuple(range(200)))["pixel_values"].mean(dim=(1, 2, 3))
    assert 70 < (half == 0).sum() < 140


def test_a_rows_box_does_not_depend_on_the_batch_it_is_in():
    together = seen({}, (3, 8, 5))
    for place, key in enumerate((3, 8, 5)):
        assert torch.equal(seen({}, (key,))["pixel_values"][0], together["pixel_values"][place])


def test_a_step_is_the_same_however_it_is_cut(make_image_recipe, tmp_path):
    losses = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        recipe = make_image_recipe(
            techniques=[{"name": "cutmix"}],
            train__per_device_train_batch_size=batch_size,
            train__gradient_accumulation_steps=accumulation,
            train__max_steps=2,
            eval__baseline="none",
            output_dir=str(tmp_path / str(batch_size)),
        )
        losses.append(briefly(recipe).metrics["train"]["final_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_does_not_go_with_mixup(make_image_recipe):
    with pytest.raises(RecipeError, match="cutmix and mixup both mix"):
        make_image_recipe(techniques=[{"name": "cutmix"}, {"name": "mixup"}])
