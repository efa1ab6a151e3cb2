"""From an opened image to the input tensor of a model: the evaluation view, or random training views.

The evaluation view is the output of the pretrained model's processor, which is saved with the model, so that the saved
model gets the same inputs. The random views have the same size and normalization, which are determined by calling the
processor, so that any processor works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize_image

from sft_hf.core.errors import CheckpointError

VIEWS = ("eval", "train", "weak", "strong")

_RESAMPLING = {
    0: v2.InterpolationMode.NEAREST,
    1: v2.InterpolationMode.LANCZOS,
    2: v2.InterpolationMode.BILINEAR,
    3: v2.InterpolationMode.BICUBIC,
    4: v2.InterpolationMode.BOX,
    5: v2.InterpolationMode.HAMMING,
}


_DRAWS = {
    torch.rand,
    torch.randn,
    torch.randint,
    torch.randperm,
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.random_,
    torch.Tensor.bernoulli_,
}


class Seeded(TorchFunctionMode):
    """Context in which torch's random numbers on the CPU in this thread are a function of `numbers`.

    torchvision's transforms take no generator. Seeding torch's global generator would also affect other threads, such
    as their dropout. A mode is local to its thread.
    """

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)
        self.generator = torch.Generator().manual_seed(int(seed))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **kwargs, generator=self.generator) if func in _DRAWS else func(*args, **kwargs)


class ImageViews:
    """The views of an image for one pretrained model.

    Args:
        processor: a Transformers image processor.
        augmentation: of the train view, in addition to cropping and flipping: "none", "trivial" (TrivialAugment,
            Mueller and Hutter 2021: one operation of random strength) or "rand" (RandAugment, Cubuk et al. 2020: two
            operations of strength 9 of 31). "evaluation" is the same as "none" here, as it uses no train view.
        min_crop_area: minimum fraction of an image's area in a crop of the train view.
        horizontal_flip: whether images may be mirrored.
        channels: of the model's input: 3 (RGB) or 1 (grey, converted from RGB).

    Raises CheckpointError for a processor whose images do not have one fixed size and this number of channels.
    """

    def __init__(
        self, processor: Any, augmentation: str, min_crop_area: float, horizontal_flip: bool, channels: int = 3
    ) -> None:
        self.processor, self.channels = processor, channels
        self.size = self._find_size()
        self._find_normalization()
        mode = _interpolation(processor)
        flip = [v2.RandomHorizontalFlip()] if horizontal_flip else []
        extra = {"trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}.get(augmentation, [])
        self._crops = {
            "train": _Crop(self.size, mode, min_crop_area, (3 / 4, 4 / 3)),
            "weak": _Crop(self.size, mode, 0.8, (0.9, 1 / 0.9)),
        }
        self._crops["strong"] = self._crops["weak"]
        self._transforms: dict[str, list[Callable[[Any], Any]]] = {
            "train": [*flip, *extra],
            "weak": flip,
            # RandAugment and Cutout, as in FixMatch (Sohn et al. 2020).
            "strong": [*flip, v2.RandAugment(), v2.PILToTensor(), v2.RandomErasing(p=1.0, value=128), _channels_last],
        }

    def __call__(self, image: Image.Image, view: str, seed: Sequence[int] = ()) -> Tensor:
        """Return an RGB image as float32 [channels, height, width], a function of view and `seed`."""
        if view == "eval":
            return self.process(image)
        return self.normalized(self.drawn(np.asarray(image), view, seed)).permute(2, 0, 1)

    def drawn(self, image: np.ndarray, view: str, seed: Sequence[int]) -> np.ndarray:
        """Return a random view of an image before normalization, uint8 [height, width, channels]."""
        seeded = Seeded(*seed, VIEWS.index(view))
        values = self._crops[view](image, seeded.generator)
        if transforms := self._transforms[view]:
            changed: Any = Image.fromarray(values)
            with seeded:
                for transform in transforms:
                    changed = transform(changed)
            values = np.asarray(changed).copy()
        return values if self.channels == 3 else np.array(Image.fromarray(values).convert("L"))[..., None]

    def normalized(self, values: np.ndarray) -> Tensor:
        """Normalize uint8 [..., height, width, channels] like the processor; return float32 of the same shape."""
        ordered = values[..., self._order] if self._reordered else values
        # Row by row: arithmetic is slow if the innermost dimension (here the channels) is short.
        rows = torch.from_numpy(ordered).flatten(-2) * self._scale
        return rows.add_(self._shift).view(values.shape)

    def process(self, image: Image.Image) -> Tensor:
        """Return the processor's output for an RGB image, float32 [channels, height, width]."""
        image = image if self.channels == 3 else image.convert("L")
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()

    def _find_size(self) -> tuple[int, int]:
        shapes = {tuple(self.process(Image.new("RGB", size)).shape) for size in ((300, 200), (200, 300), (500, 500))}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != self.channels:
            name = type(self.processor).__name__
            raise CheckpointError(
                f"{name}: gives images of different or unknown shapes, and a batch needs one: set a fixed size in "
                "preprocessor_config.json (do_center_crop: true, or size: {height: 224, width: 224})"
            )
        return int(shape[1]), int(shape[2])

    def _find_normalization(self) -> None:
        """Find a, b and the input channel of each output channel = a + b x (input channel)."""
        colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
        if self.channels == 1:
            colours = [(0, 0, 0), (255, 255, 255)]
        black, *rest = (self.process(Image.new("RGB", (256, 256), colour)).mean(dim=(1, 2)) for colour in colours)
        response = torch.stack([colour - black for colour in rest], dim=1)  # [channel out, channel in]
        order = response.abs().argmax(dim=1)
        scale = response.gather(1, order[:, None])[:, 0] / 255
        self._order, width = order.numpy(), self.size[1]
        self._reordered = self._order.tolist() != list(range(self.channels))
        self._scale, self._shift = (values.repeat(width) for values in (scale, black))  # [width * channel]


class _Crop:
    """A random part of an image, resized: `v2.RandomResizedCrop` with the same random numbers and kernels.

    Its type checks would take longer than the resizing.
    """

    def __init__(
        self, size: tuple[int, int], mode: v2.InterpolationMode, area: float, ratio: tuple[float, float]
    ) -> None:
        self.size, self.mode, self.area, self.ratio = list(size), mode, area, ratio

    def __call__(self, image: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Return uint8 [*size, 3] of uint8 [height, width, 3]."""
        height, width = image.shape[:2]
        top, left, rows, columns = random_part(height, width, self.area, self.ratio, generator)
        part = torch.from_numpy(image[top : top + rows, left : left + columns].copy())
        return resize_image(part.permute(2, 0, 1), self.size, self.mode).permute(1, 2, 0).numpy()


def random_part(
    height: int, width: int, area: float, ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random part of an image.

    Its area is at least the fraction `area` of the image, its aspect ratio is in `ratio`, uniform on a logarithmic
    scale; if ten draws do not fit, it is the largest central part with such a ratio. Source: C. Szegedy et al., Going
    Deeper with Convolutions, 2015, section 6; drawn like torchvision's RandomResizedCrop.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    def below(end: int) -> int:
        return int(torch.randint(0, end, (1,), generator=generator))

    logarithms = [math.log(ratio[0]), math.log(ratio[1])]
    for _ in range(10):
        target = height * width * uniform(area, 1.0).item()
        aspect = torch.exp(uniform(*logarithms)).item()
        columns, rows = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = below(height - rows + 1)
            return top, below(width - columns + 1), rows, columns
    rows = min(height, round(width / ratio[0]))
    columns = min(width, round(height * ratio[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.permute(1, 2, 0)


def _interpolation(processor: Any) -> v2.InterpolationMode:
    wanted = getattr(processor, "resample", None)
    if wanted is None:  # timm's
        wanted = (getattr(processor, "data_config", None) or {}).get("interpolation", "bilinear")
        return next((mode for mode in _RESAMPLING.values() if mode.value == wanted), v2.InterpolationMode.BICUBIC)
    return wanted if isinstance(wanted, v2.InterpolationMode) else _RESAMPLING[int(wanted)]
