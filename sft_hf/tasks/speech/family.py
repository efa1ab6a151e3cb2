"""The interface of the two kinds of speech recognizers (CTC, sequence-to-sequence)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor

from sft_hf.core.errors import RecipeError
from sft_hf.data.row_cache import RowCache, qualified_name
from sft_hf.models.loading import open_checkpoint, quiet_transformers
from sft_hf.tasks.speech.languages import language_code
from sft_hf.tasks.speech.normalization import nfc
from sft_hf.tasks.speech.transcripts import Word

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source
    from sft_hf.tasks.base import Batch, Items

MARKER = re.compile(r"<\|[^|<>\s]*\|>")  # the form of Whisper's special tokens, even if the tokenizer lacks a token

IGNORED = -100
"""Padding of labels and hypotheses, ignored by the loss."""

SPEC_AUGMENT_FIELDS = ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length")


class Family(ABC):
    """A recognizer's processor, losses and decoding; turns the data read by the task into tensors and back."""

    tokenizer: Any
    answers_untrained: bool = True
    """Whether the pretrained model can transcribe without training."""

    def __init__(self, config: PretrainedConfig, source: Source, settings: Any, trained: bool = False) -> None:
        """`trained`: the model was written by `save`. Raises CheckpointError, RecipeError."""
        self.config, self.settings = config, settings
        self.language = language_code(settings.language)
        self.extractor = open_checkpoint(AutoFeatureExtractor, source, "preprocessor_config.json")

    @property
    def rate(self) -> int:
        """The model's sampling rate in Hz."""
        return int(self.extractor.sampling_rate)

    @property
    def max_seconds(self) -> float:
        """The maximum length of a clip in seconds; infinity if there is no limit."""
        return float("inf")

    @abstractmethod
    def learn_texts(self, texts: Iterable[str], built_from: str | None) -> None:
        """Learn vocabulary or letter case from the transcripts of train, before any is encoded.

        `built_from` names the split if a vocabulary may be built from it. Raises RecipeError.
        """

    def learn_lengths(self, seconds: np.ndarray, labels: Sequence[list[int]]) -> list[str]:
        """Learn the lengths of clips and transcripts from the train split; return notes."""
        return []

    def window_lengths(self, seconds: np.ndarray) -> np.ndarray | None:
        """Return the seconds that clips of these lengths are padded to; None: to the longest clip of a batch."""
        return None

    @abstractmethod
    def recall(self, config: Any) -> None:
        """Restore the results of `learn_texts` and `learn_lengths` from the config of a trained model."""

    def write(self, text: str) -> str:
        """Return a transcript in a form that the model can write: Unicode NFC, with single blanks."""
        return " ".join(nfc(text).split())

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokenizer = self.tokenizer
        marked = [token for token in tokenizer.get_added_vocab() if re.fullmatch(r"<.+>|\[.+\]", token)]
        tokens = {token for token in (*tokenizer.all_special_tokens, *marked) if len(token.strip()) > 1}
        listed = sorted((token for token in tokens if not MARKER.fullmatch(token)), key=len, reverse=True)
        return re.compile("|".join([MARKER.pattern, *map(re.escape, listed)]), re.IGNORECASE)

    def special_tokens(self, text: str) -> list[str]:
        """Return the special tokens that occur as text in a transcript: timestamps, languages, <unk>."""
        return self._special.findall(text)

    def without_special_tokens(self, text: str) -> str:
        """Return a transcript without special tokens."""
        return self._special.sub(" ", text)

    def unknown_characters(self, text: str) -> set[str]:
        """Return the characters of a transcript (after `write`) for which the tokenizer only has <unk>."""
        unknown = self._unknown_token
        if unknown is None or unknown not in self.encode(text):
            return set()
        for character in set(text) - self._known.keys():
            self._known[character] = character.isspace() or unknown not in self.encode(character)
        return {character for character in set(text) if not self._known[character]}

    @property
    def _unknown_token(self) -> int | None:
        token = self.tokenizer.unk_token_id
        return None if token in (None, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id) else int(token)

    @cached_property
    def _known(self) -> dict[str, bool]:
        return {}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the label tokens of a transcript (after `write`)."""

    @abstractmethod
    def refusal(self, features: np.ndarray, labels: list[int], fastest: float) -> str | None:
        """Return why a row cannot be trained on, even at `fastest` times its speed; None if it can."""

    def check_masks(self, config: Any, changed: Container[str], steps: int, features: int) -> None:
        """Check that SpecAugment's masks fit; otherwise Transformers would fail in the first step.

        Args:
            config: the model's, with the recipe's changes.
            changed: names of the fields that the recipe changes.
            steps: time steps of the longest training clip, or of a fixed window; 0: unknown.
            features: number of features that can be masked.

        Raises RecipeError.
        """
        if not getattr(config, "apply_spec_augment", False):
            return
        time, feature = "mask_time_length", "mask_feature_length"
        length = int(getattr(config, time, 0))
        if getattr(config, "mask_time_prob", 0) > 0 and 0 < steps < length and time in changed:
            raise RecipeError(
                f"task.{time}: masks of {length} time steps do not fit into the longest clip, which has {steps}; set "
                f"it to {steps} or less, or task.mask_time_prob: 0"
            )
        length = int(getattr(config, feature, 0))
        if getattr(config, "mask_feature_prob", 0) > 0 and length > features:
            raise RecipeError(
                f"task.{feature}: masks of {length} features do not fit into the model's {features}; set it to "
                f"{features} or less, or task.mask_feature_prob: 0"
            )

    def extract(self, samples: np.ndarray) -> np.ndarray:
        """Return the features of a clip; time is the last dimension for Whisper, otherwise the first."""
        name = self.extractor.model_input_names[0]
        options = {"sampling_rate": self.rate, "return_attention_mask": True, "return_tensors": "np"}
        out = self.extractor(samples, padding=False, **options)
        features = np.asarray(out[name][0], dtype=np.float32)
        mask = out.get("attention_mask")
        return features if mask is None else features[: int(mask[0].sum())]

    def feature_cache(self, gigabytes: float) -> RowCache:
        """Return the cache of extracted features, keyed by the SHA-256 of the recordings."""
        made_by = {
            "family": type(self).__name__,
            "model": self.config.model_type,
            "extractor": [qualified_name(self.extractor), self.extractor.to_json_string()],
            "threads": torch.get_num_threads(),
        }
        packages = ("transformers", "torch", "numpy", "soundfile", "soxr")
        return RowCache("features", made_by, packages, gigabytes)

    @abstractmethod
    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Pad rows of `SpeechRows` into a batch."""

    @abstractmethod
    def build(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """Load the model. Raises CheckpointError, RecipeError."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each row's loss, summed over its label tokens, float32 [rows]."""

    kind: str = ""
    """See `Task.model_kind`."""

    no_items: str | None = None
    """See `Task.no_items`."""

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """See `Task.items`."""
        raise NotImplementedError(self.no_items)

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Transcribe a batch.

        Returns:
            `tokens` int64 [rows, longest], the input of `text` and `words`; `confidence` float32 [rows]; `hypotheses`
            int64 [rows, longest], the scored tokens, and their `logprobs` float32 [rows, longest]; `seconds` [rows],
            and `loss` [rows] if the batch has labels. Tokens below 0 are padding.
        """

    @abstractmethod
    def text(self, tokens: Sequence[int]) -> str:
        """Return the transcript of a row's tokens."""

    @abstractmethod
    def words(self, tokens: Sequence[int], seconds: float) -> list[Word]:
        """Return the words of a row's tokens, with times in a clip of `seconds`."""

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write model, feature extractor and tokenizer."""
        with quiet_transformers():
            model.save_pretrained(folder)
            self.extractor.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def head(self) -> dict[str, Any]:
        """Return the config fields for SpecAugment from the settings. Raises RecipeError if the model has none."""
        wanted = {name: getattr(self.settings, name) for name in SPEC_AUGMENT_FIELDS}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        for name in wanted:
            if not hasattr(self.config, name):
                raise RecipeError(f"task.{name}: a {self.config.model_type!r} model has no SpecAugment; remove it")
        if wanted and hasattr(self.config, "apply_spec_augment"):
            wanted["apply_spec_augment"] = any(
                wanted.get(name, getattr(self.config, name)) > 0 for name in ("mask_time_prob", "mask_feature_prob")
            )
        return wanted


def pad_rows(arrays: Sequence[np.ndarray], width: int, value: float, dtype: Any = np.float32) -> Tensor:
    """Stack arrays [length, ...], padded to `width` at the end."""
    padded = np.full((len(arrays), width, *np.shape(arrays[0])[1:]), value, dtype=dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)


def mask_of(lengths: Sequence[int], width: int) -> Tensor:
    """Return an attention mask, int64 [rows, width]: 0 for padding."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
