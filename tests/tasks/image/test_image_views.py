"""Random views: the pixels that torchvision draws, whatever other threads draw at the same time."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from sft_hf.core.sources.sources import resolve
from sft_hf.jobs.inputs import load_data
from sft_hf.tasks.image.task import ImageClassification
from sft_hf.tasks.image.views import VIEWS, ImageViews, Seeded
from sft_hf.tasks.speech.task import SpeechRecognition
from sft_hf.tasks.text.task import TextClassification

SIZE, MEAN, STD = (24, 20), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])


def views(augmentation="none"):
    size = {"height": SIZE[0], "width": SIZE[1]}
    processor = ViTImageProcessor(size=size, resample=3, image_mean=MEAN.tolist(), image_std=STD.tolist())
    return ImageViews(processor, augmentation, 0.35, horizontal_flip=True)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (37, 45, 3), dtype=np.uint8))


def drawn_by_torchvision(view, augmentation, seed):
    """The transforms as they are documented, put together here, drawing from torch's global generator."""

    def crop(area, **options):
        return v2.RandomResizedCrop(SIZE, scale=(area, 1.0), interpolation=v2.InterpolationMode.BICUBIC, **options)

    flip, to_tensor = v2.RandomHorizontalFlip(), v2.PILToTensor()
    as_picture = v2.ToPILImage()
    weak = [to_tensor, crop(0.8, ratio=(0.9, 1 / 0.9)), as_picture, flip]
    extra = {"none": [], "trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}[augmentation]
    transform = {
        "train": [to_tensor, crop(0.35), as_picture, flip, *extra, to_tensor],
        "weak": [*weak, to_tensor],
        "strong": [*weak, v2.RandAugment(), to_tensor, v2.RandomErasing(p=1.0, value=128)],
    }[view]
    word = np.random.SeedSequence([*seed, VIEWS.index(view)]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word >> np.uint64(1)))
    return v2.Compose(transform)(picture())


@pytest.mark.parametrize("augmentation", ["none", "trivial", "rand"])
@pytest.mark.parametrize("view", ["train", "weak", "strong"])
def test_a_view_has_the_pixels_that_torchvision_draws_from_a_seeded_generator(view, augmentation):
    ours = views(augmentation)
    for row in range(25):  # so many that each operation is drawn
        seed = (42, 3, row)
        found = ours(picture(), view, seed) * STD[:, None, None] + MEAN[:, None, None]
        assert torch.equal((found * 255).round().to(torch.uint8), drawn_by_torchvision(view, augmentation, seed)), row


def test_other_threads_change_no_view_and_no_view_changes_what_they_draw():
    ours, seeds = views("rand"), [(1, 2, row) for row in range(64)]
    alone = [ours(picture(), "train", seed) for seed in seeds]
    torch.manual_seed(5)
    expected = torch.rand(2000)
    torch.manual_seed(5)
    with ThreadPoolExecutor(3) as pool:
        together = pool.map(lambda seed: ours(picture(), "train", seed), seeds)
        drawn = torch.stack([torch.rand(()) for _ in range(2000)])
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert torch.equal(drawn, expected)


def test_every_kind_of_draw_is_seeded():
    def draws():
        yield torch.rand(3)
        yield torch.randn(3)
        yield torch.randint(9, (3,))
        yield torch.randperm(9)
        yield from (getattr(torch.zeros(3), name)() for name in ("uniform_", "normal_", "random_", "bernoulli_"))

    before = torch.get_rng_state()
    with Seeded(1, 2):
        first = list(draws())
    with Seeded(1, 2):
        second = list(draws())
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("task", ["text", "image", "speech"])
def test_collating_draws_from_no_global_generator(task, make_recipe, make_image_recipe, make_speech_recipe):
    """So that it may run beside a training step, whose dropout and masks do."""
    cls, recipe = {
        "text": lambda: (TextClassification, make_recipe()),
        "image": lambda: (ImageClassification, make_image_recipe(task__augmentation="rand")),
        "speech": lambda: (
            SpeechRecognition,
            make_speech_recipe(task__speed_factors=[0.9, 1.1], task__noise_probability=1.0, task__noise_snr_db=[5, 9]),
        ),
    }[task]()
    task = cls(recipe)
    splits = load_data(recipe, task, resolve(recipe.model.name))
    train = task.prepare(splits.by_role["train"], splits.where["train"])
    names = ("train", "weak", "strong") if train.views else ("train",)
    sights = [train.features, *(train.view(name, 1).features for name in names)]
    before = states()
    batches = [task.collate([features[row] for row in (0, 3, 1)]) for features in sights]
    assert states() == before
    assert len(batches[0]["labels"]) == 3
