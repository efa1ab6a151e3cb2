"""From an opened image to the tensor a model takes: as evaluation sees it, or as training does, at random.

The evaluation view is the checkpoint's own processor, the one that is saved beside the model: whoever opens the model
later gets the same numbers. The random views have its size and its normalisation, which are found by trying it out, so
that any processor will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sft_hf.errors import CheckpointError

VIEWS = ("eval", "train", "weak", "strong")
AUGMENTATIONS = ("none", "trivial", "rand", "evaluation")

_RESAMPLING = {
    0: v2.InterpolationMode.NEAREST,
    1: v2.InterpolationMode.LANCZOS,
    2: v2.InterpolationMode.BILINEAR,
    3: v2.InterpolationMode.BICUBIC,
    4: v2.InterpolationMode.BOX,
    5: v2.InterpolationMode.HAMMING,
}


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers on the CPU a function of `numbers`, and leave its state as it was.

    `torch.manual_seed` would seed the GPUs too, and dropout with them.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        generator.set_state(state)


class ImageViews:
    """The views of an image for one checkpoint.

    Args:
        processor: a Transformers image processor.
        augmentation: what the train view does besides cropping and flipping: "none", "trivial" (TrivialAugment, Mueller
            and Hutter 2021: one operation of random strength) or "rand" (RandAugment, Cubuk et al. 2020: two operations
            of strength 9 of 31). "evaluation" is as "none" here: who wants it asks for no train view.
        min_crop_area: the smallest part of an image's area that the train view cuts out.
        horizontal_flip: whether a mirror image is the same class.

    Raises CheckpointError for a processor that does not give one 3-channel image of a fixed size.
    """

    def __init__(self, processor: Any, augmentation: str, min_crop_area: float, horizontal_flip: bool) -> None:
        self.processor = processor
        self.size = self._find_size()
        self._find_normalization()
        mode = _interpolation(processor)
        flip = [v2.RandomHorizontalFlip()] if horizontal_flip else []

        def crop(area: float, **options: Any) -> v2.RandomResizedCrop:
            return v2.RandomResizedCrop(self.size, scale=(area, 1.0), interpolation=mode, antialias=True, **options)

        extra = {"trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}.get(augmentation, [])
        weak = [crop(0.8, ratio=(0.9, 1 / 0.9)), *flip]
        self._transforms = {
            "train": v2.Compose([crop(min_crop_area), *flip, *extra, v2.PILToTensor()]),
            "weak": v2.Compose([*weak, v2.PILToTensor()]),
            # RandAugment and Cutout, as in FixMatch (Sohn et al. 2020).
            "strong": v2.Compose([*weak, v2.RandAugment(), v2.PILToTensor(), v2.RandomErasing(p=1.0, value=128)]),
        }

    def __call__(self, image: Image.Image, view: str, seed: Sequence[int] = ()) -> Tensor:
        """Return an RGB image as float32 [3, height, width]; the same for the same view and `seed`."""
        if view == "eval":
            return self.process(image)
        with seeded(*seed, VIEWS.index(view)):
            pixels = self._transforms[view](image)
        return pixels[self._order].float().mul_(self._scale).add_(self._shift)

    def process(self, image: Image.Image) -> Tensor:
        """Return what the checkpoint's processor makes of an image, float32 [3, height, width]."""
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()

    def _find_size(self) -> tuple[int, int]:
        shapes = {tuple(self.process(Image.new("RGB", size)).shape) for size in ((300, 200), (200, 300), (500, 500))}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != 3:
            name = type(self.processor).__name__
            raise CheckpointError(
                f"{name}: gives images of different or unknown shapes, and a batch needs one: set a fixed size in "
                "preprocessor_config.json (do_center_crop: true, or size: {height: 224, width: 224})"
            )
        return int(shape[1]), int(shape[2])

    def _find_normalization(self) -> None:
        """Each channel that comes out is a + b x (one channel that goes in): find a, b and which."""
        colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
        black, *rest = (self.process(Image.new("RGB", (256, 256), colour)).mean(dim=(1, 2)) for colour in colours)
        response = torch.stack([colour - black for colour in rest], dim=1)  # [channel out, channel in]
        self._order = response.abs().argmax(dim=1)
        self._scale = response.gather(1, self._order[:, None])[:, :, None] / 255
        self._shift = black[:, None, None]


def _interpolation(processor: Any) -> v2.InterpolationMode:
    wanted = getattr(processor, "resample", None)
    if wanted is None:  # that of timm
        wanted = (getattr(processor, "data_config", None) or {}).get("interpolation", "bilinear")
        return next((mode for mode in _RESAMPLING.values() if mode.value == wanted), v2.InterpolationMode.BICUBIC)
    return wanted if isinstance(wanted, v2.InterpolationMode) else _RESAMPLING[int(wanted)]
