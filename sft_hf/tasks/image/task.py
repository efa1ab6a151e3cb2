"""Image classification with any model that `AutoModelForImageClassification` supports, including timm models through
Transformers' wrapper, or with a plain state dict (see `sft_hf.models.formats.state_dicts`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from sft_hf.core.console import progress
from sft_hf.core.errors import CheckpointError, DataError, RecipeError, UserError
from sft_hf.core.recipe.sections import ModelSection
from sft_hf.data.columns import Column, read_row_ids
from sft_hf.data.examples import Examples
from sft_hf.data.tables.bad_rows import skipped_rows
from sft_hf.models import image_inputs
from sft_hf.models.formats.state_dicts import build_config, is_state_dict, load_from_state_dict, timm_preprocessing
from sft_hf.models.loading import load_pretrained, open_checkpoint, opens, quiet_transformers
from sft_hf.models.trained_heads import settle_head
from sft_hf.tasks.base import Batch, Task
from sft_hf.tasks.classification import ClassifierTask
from sft_hf.tasks.image.brightness import Brightness, Depth
from sft_hf.tasks.image.reader import ImageReader, ImageRows
from sft_hf.tasks.image.settings import ImageClassificationSettings
from sft_hf.tasks.regression import RegressionTask

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedModel

    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.sources.sources import Source
    from sft_hf.tasks.image.image_store import ImageStore
    from sft_hf.tasks.image.views import ImageViews

log = logging.getLogger("sft_hf")

STREAM_LOOK = 256  # rows of a stream from which the scale of images of more than 8 bits is chosen


class ImageClassification(ClassifierTask[ImageClassificationSettings]):
    """Assigns one label or several to an image."""

    reader: ImageReader
    views: ImageViews

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        try:
            import PIL  # noqa: F401
            import torchvision  # noqa: F401
        except ImportError as error:
            raise UserError(f"images need {error.name}: pip install 'sft-hf[image]'") from None
        from sft_hf.tasks.image.image_store import ImageBudget

        self.budget = ImageBudget()
        self.reader = ImageReader(recipe.data)

    @classmethod
    def serving(cls, recipe: Recipe) -> type[Task[Any]]:
        """See `Task.serving`."""
        return ImageRegression if recipe.task.is_regression else cls

    def fit(self, train: Dataset, where: str, source: Source) -> None:
        """See `Task.fit`."""
        if is_state_dict(source):
            self.config = build_config(source, self.recipe.model.architecture)
        else:
            self.config = open_checkpoint(AutoConfig, source, "config.json")
        if not opens(AutoModelForImageClassification, self.config, source):
            raise CheckpointError(
                f"{source.name}: a {self.config.model_type!r} model cannot classify images; give one that "
                "AutoModelForImageClassification opens (ViT, Swin, ConvNeXt, ResNet, timm's models, ...)"
            )
        self._use_processor(self._processor(source), self.recipe.model.config_overrides)
        if self.recipe.data.streaming:
            self._look_at_stream(train, where)
        self.fit_labels(train, where, self.settings.problem_type, self.config)

    def _processor(self, source: Source) -> Any:
        """Return the pretrained model's image processor, or the default of its architecture."""
        if self.config.model_type == "timm_wrapper":
            from transformers import TimmWrapperImageProcessor

            if getattr(self.config, "pretrained_cfg", None) is None:  # a wrapper that was built locally
                self.config.pretrained_cfg = timm_preprocessing(self.config.architecture) or {}
            if self.settings.crop_pct is not None:
                self.config.pretrained_cfg = {**self.config.pretrained_cfg, "crop_pct": self.settings.crop_pct}
            if image_inputs.input_channels(self.config, {}, source.name) == 1:
                self.config.pretrained_cfg = image_inputs.grey_preprocessing(self.config.pretrained_cfg)
            return TimmWrapperImageProcessor(self.config.pretrained_cfg, self.config.architecture)
        names = ("preprocessor_config.json", "processor_config.json")
        if source.path is None or any((source.path / name).is_file() for name in names):
            processor = open_checkpoint(AutoImageProcessor, source, "image processor")
        else:
            processor = self._default_processor(source)
        if self.settings.crop_pct is not None:
            if not hasattr(processor, "crop_pct"):
                raise RecipeError(f"task.crop_pct: {type(processor).__name__} has no such setting; remove it")
            processor.crop_pct = self.settings.crop_pct
        return processor

    def _default_processor(self, source: Source) -> Any:
        from transformers import IMAGE_PROCESSOR_MAPPING

        known = type(self.config) in IMAGE_PROCESSOR_MAPPING
        kinds: Any = IMAGE_PROCESSOR_MAPPING[type(self.config)] if known else {}
        cls = kinds.get("torchvision") or kinds.get("pil")
        if cls is None:
            raise CheckpointError(
                f"{source.name}: has no preprocessor_config.json; save its image processor next to it"
            )
        size = getattr(self.config, "image_size", None)
        square = {"height": size, "width": size}
        options = {"size": square} if isinstance(size, int) and set(cls.size or ()) == set(square) else {}
        log.info("%s has no preprocessor_config.json: images are prepared as %s does", source.name, cls.__name__)
        return cls(**options)

    def _use_processor(self, processor: Any, overrides: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Set the processor, adapted to the image size and channels in the recipe (`overrides`)."""
        from sft_hf.tasks.image.views import ImageViews

        channels = image_inputs.input_channels(self.config, overrides, self.recipe.model.name)
        if channels == 1:
            image_inputs.grey(processor)
        if "image_size" in overrides:
            image_inputs.resize(processor, overrides["image_size"])
        settings = self.settings
        self.views = ImageViews(
            processor, settings.augmentation, settings.min_crop_area, settings.horizontal_flip, channels
        )

    def head_config(self) -> dict[str, Any]:
        """See `ClassifierTask.head_config`; timm's config also keeps its own names."""
        head = super().head_config()
        if self.config.model_type == "timm_wrapper":
            head["label_names"] = list(self.label_map.names)
        return head

    def build_model(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """See `Task.build_model`."""
        load = load_from_state_dict if is_state_dict(source) else load_pretrained
        model = load(AutoModelForImageClassification, self.config, source, section, self.head_config())
        image_inputs.check_fit(model, self.views.channels, self.views.size, source.name)
        return settle_head(model, self.head_rows)

    def prepare(self, split: Dataset, where: str) -> Examples:
        """See `Task.prepare`. Every image is opened once, so that bad images are found before training."""
        split, encoded, skipped = self.labelled_rows(split, where)
        label_of = None if encoded is None else dict(zip(read_row_ids(split).tolist(), encoded, strict=True))
        split, store, notes = self._without_bad_rows(split, where)
        row_ids = read_row_ids(split)
        labels = None if label_of is None else [label_of[row_id] for row_id in row_ids.tolist()]

        def views(name: str, epoch: int) -> ImageRows:
            seeds = [(self.recipe.seed, epoch, int(row_id)) for row_id in row_ids]
            return ImageRows(store, labels, name, seeds)

        rows, blank = ImageRows(store, labels), ImageRows(store, labels, "blank")
        same = self.settings.augmentation == "evaluation"
        lengths = np.ones(len(rows), dtype=np.int64)
        references = [None] * len(row_ids) if labels is None else labels
        return Examples(rows, lengths, row_ids, references, [*skipped, *notes], None if same else views, blank)

    def _without_bad_rows(self, split: Dataset, where: str) -> tuple[Dataset, ImageStore, list[str]]:
        from sft_hf.tasks.image.image_store import ImageStore
        from sft_hf.tasks.image.images import DEPTH, map_ahead

        column, skip = self.recipe.data.image_column, self.recipe.data.on_bad_row == "skip"
        places = [f"{where} row {row_id}" for row_id in read_row_ids(split).tolist()]
        store = ImageStore(Column(split, column), places, self.budget.share(), self.reader.brightness)

        def looked_at(index: int) -> tuple[str | None, Depth | None]:
            try:
                return None, store.open(index).info.get(DEPTH)
            except DataError as error:
                return str(error), None

        bad: dict[int, str] = {}
        depths: dict[int, Depth] = {}
        found = map_ahead(looked_at, range(len(split)), torch.get_num_threads())
        for index, (message, depth) in enumerate(progress(found, f"checking {where}", len(split))):
            if depth is not None:
                depths[index] = depth
            if message is None:
                continue
            if not skip:
                raise DataError(f"{message} (data.on_bad_row: skip leaves such rows out)")
            bad[index] = message
        if bad and len(bad) == len(split):
            raise DataError(f"{where}: none of its images can be opened; the first: {bad[0]}")
        notes = skipped_rows(where, list(bad.values()), len(split)) + self._set_brightness(store, depths, where)
        if bad:
            good = [index for index in range(len(split)) if index not in bad]
            split = split.select(good)
            store = store.only(good, Column(split, column))
        self.budget.count(store)
        return split, store, notes

    def _set_brightness(self, store: ImageStore, depths: Mapping[int, Depth], where: str) -> list[str]:
        """Choose the scale of images of more than 8 bits if there is none yet, and cache them with it."""
        self.reader.brightness, notes = self.reader.brightness.learned(depths.values(), where)
        if self.reader.brightness is not store.brightness:
            store.brightness = self.reader.brightness
            for index in depths:
                if store.nbytes >= store.budget:
                    break
                store.open(index)
        return notes

    def _look_at_stream(self, train: Dataset | IterableDataset, where: str) -> None:
        """Choose the scale on the first rows of a stream, so that it does not depend on where a run was resumed."""
        from sft_hf.tasks.image.images import DEPTH, open_image

        depths = []
        for row in train.take(STREAM_LOOK):
            with suppress(DataError):  # reported by `prepare`
                depths.append(open_image(row.get(self.recipe.data.image_column)).info.get(DEPTH))
        self.reader.brightness, notes = self.reader.brightness.learned(
            filter(None, depths), f"{where}, first {STREAM_LOOK} rows"
        )
        for note in notes:
            log.info("%s", note)

    def collate(self, features: list[dict[str, Any]]) -> Batch:
        """See `Task.collate`; opens the images in threads. `pixel_values`: float32 [rows, channels, height, width]."""
        blank = features[0]["view"] == "blank"
        batch: Batch = {"pixel_values": self._blank(len(features)) if blank else self._pixels(features)}
        if "labels" in features[0]:
            batch["labels"] = self.label_tensor([row["labels"] for row in features])
        return batch

    def _pixels(self, features: list[dict[str, Any]]) -> Tensor:
        """Return the pixels of the rows of a batch, which all have the same view."""
        from sft_hf.tasks.image.images import map_ahead

        view = features[0]["view"]

        def opened(row: dict[str, Any]) -> Any:
            store: ImageStore = row["store"]
            return store.open(row["index"]) if view == "eval" else store.pixels(row["index"])

        # Threads are used only for decoding: the other steps are already multithreaded.
        workers = 1 if all(row["store"].holds(row["index"]) for row in features) else torch.get_num_threads()
        images = map_ahead(opened, features, min(workers, len(features)))
        if view == "eval":
            pixels = torch.stack([self.views(image, view).permute(1, 2, 0) for image in images])
        else:
            drawn = [self.views.drawn(image, view, row["seed"]) for image, row in zip(images, features, strict=True)]
            pixels = self.views.normalized(np.stack(drawn))
        # The fastest memory layout for convolutions, on CPUs with oneDNN and on GPUs; the values are the same.
        return pixels.permute(0, 3, 1, 2)

    def as_embeddings(self, model: nn.Module, batch: Batch) -> tuple[str, Batch]:
        """See `Task.as_embeddings`: normalized pixels."""
        return "pixel_values", batch

    def _blank(self, rows: int) -> Tensor:
        """Return placeholder images that share the memory of a single number."""
        return torch.zeros(()).expand(rows, self.views.channels, *self.views.size)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """See `Task.save`. timm's processor writes no file: it is created from config.json."""
        self.write_decisions(model.config)
        self.reader.brightness.write(model.config)
        with quiet_transformers():
            model.save_pretrained(folder)
            self.views.processor.save_pretrained(folder)

    @classmethod
    def restore(cls, recipe: Recipe, folder: Path) -> tuple[Task[Any], PreTrainedModel]:
        """See `Task.restore`."""
        from sft_hf.core.sources.sources import resolve
        from sft_hf.tasks.restore import build_trained

        source = replace(resolve(str(folder)), trusted=recipe.model.trust_remote_code)
        task = cls(recipe)
        task.config = open_checkpoint(AutoConfig, source, "config.json")
        task.read_head(task.config)
        task.reader.brightness = Brightness.of(task.config)
        task._use_processor(task._processor(source))
        return task, build_trained(task, recipe, source)


class ImageRegression(RegressionTask[ImageClassificationSettings], ImageClassification):
    """Predicts one number or several for an image."""

    def example_batch(self) -> Batch:
        """See `RegressionTask.example_batch`."""
        return self.collate([{"view": "blank"}])
