"""The views of an image: random ones by their seed, normalized as the processor does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from image_examples import prepared

from sft_hf.core.errors import CheckpointError
from sft_hf.jobs.finetune import finetune
from sft_hf.tasks.image.views import ImageViews


def processor_of(folder):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder)


@pytest.fixture(params=["vit", "resnet", "timm"])
def processor(request, image_checkpoint, resnet_checkpoint, timm_checkpoint):
    return processor_of({"vit": image_checkpoint, "resnet": resnet_checkpoint, "timm": timm_checkpoint}[request.param])


@pytest.mark.parametrize("augmentation", ["none", "trivial", "rand"])
@pytest.mark.parametrize("view", ["train", "weak", "strong"])
def test_a_random_view_is_a_function_of_its_seed_and_leaves_torch_alone(processor, augmentation, view, make_image):
    views = ImageViews(processor, augmentation, 0.35, horizontal_flip=True)
    image = make_image("red", 5, (60, 50))
    first = views(image, view, (42, 0, 7))
    assert first.dtype == torch.float32 and first.shape == (3, *views.size)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(views(image, view, (42, 0, 7)), first)
    assert torch.equal(torch.get_rng_state(), before)
    others = [views(image, view, seed) for seed in ((42, 1, 7), (42, 0, 8), (43, 0, 7))]
    assert all(not torch.equal(other, first) for other in others)


def test_views_are_normalized_as_the_processor_does(processor):
    views = ImageViews(processor, "none", 0.35, horizontal_flip=True)
    from PIL import Image

    for colour in ((0, 0, 0), (255, 255, 255), (10, 200, 90)):
        image = Image.new("RGB", (70, 50), colour)
        expected = views(image, "eval")
        assert torch.allclose(views(image, "train", (1, 2, 3)), expected, atol=1e-5)
        assert torch.allclose(views(image, "weak", (1, 2, 3)), expected, atol=1e-5)


def test_channels_in_another_order_are_found(make_image):
    class Swapped:
        resample = 3

        def __call__(self, image, return_tensors):
            pixels = torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).flip(0)
            return {"pixel_values": (pixels.float()[None] - 100) / 50}

    views = ImageViews(Swapped(), "none", 1.0, horizontal_flip=False)
    image = make_image("blue", 1, (8, 8)).resize((1, 1)).resize((8, 8))
    assert torch.allclose(views(image, "train", (1,)), views(image, "eval"), atol=1e-4)


def test_a_flip_can_be_forbidden(processor):
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, 32:] = 255
    from PIL import Image

    picture = Image.fromarray(image)
    never = ImageViews(processor, "none", 1.0, horizontal_flip=False)
    often = ImageViews(processor, "none", 1.0, horizontal_flip=True)

    def flipped(views):
        found = [views(picture, "train", (seed,)).mean(dim=(0, 1)) for seed in range(20)]
        return sum(bool(row[0] > row[-1]) for row in found)

    assert flipped(never) == 0
    assert 0 < flipped(often) < 20


def test_a_processor_without_a_fixed_size_is_refused(make_image_recipe, image_checkpoint, tmp_path):
    for path in image_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config["size"] = {"shortest_edge": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="different or unknown shapes"):
        finetune(make_image_recipe(model__name=str(tmp_path)))


def test_examples_have_views_that_change_with_the_epoch(make_image_recipe):
    task, examples = prepared(make_image_recipe(task__augmentation="trivial"))
    train = examples["train"]

    def batch(view, rows=(0, 5, 9)):
        return task.collate([view.features[row] for row in rows])["pixel_values"]

    assert torch.equal(batch(train), batch(train))
    first, second = train.view("train", 0), train.view("train", 1)
    assert torch.equal(batch(first), batch(train.view("train", 0)))
    assert not torch.equal(batch(first), batch(second))
    assert not torch.equal(batch(train.view("weak", 0)), batch(train.view("strong", 0)))
    # A row looks the same whatever batch it is in, and whatever else was left away: its row id decides.
    assert torch.equal(batch(first)[1], batch(first, (5,))[0])
    limited = prepared(make_image_recipe(task__augmentation="trivial", data__max_train_samples=9))[1]["train"]
    row = int(np.flatnonzero(train.row_ids == limited.row_ids[4])[0])
    assert torch.equal(batch(limited.view("train", 3), (4,)), batch(train.view("train", 3), (row,)))


def test_decoding_in_threads_changes_nothing(make_image_recipe):
    task, examples = prepared(make_image_recipe())
    rows = examples["train"].view("train", 0).features
    alone = task.collate([rows[index] for index in range(12)])
    torch.set_num_threads(3)
    try:
        together = task.collate([rows[index] for index in range(12)])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone["pixel_values"], together["pixel_values"])
    assert torch.equal(alone["labels"], together["labels"])
