"""CTC speech recognizers: Wav2Vec2, HuBERT, WavLM, Parakeet and similar models."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCTC, AutoTokenizer

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.sources.hub import unasked
from sft_hf.models.loading import load_pretrained, open_checkpoint, quiet_transformers
from sft_hf.tasks.speech import ctc
from sft_hf.tasks.speech.family import IGNORED, MARKER, Family, mask_of, pad_rows
from sft_hf.tasks.speech.languages import change_case
from sft_hf.tasks.speech.normalization import nfc
from sft_hf.tasks.speech.transcripts import Word

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source
    from sft_hf.tasks.base import Batch

log = logging.getLogger("sft_hf")

USUAL_MASK = 10  # default number of time steps of a SpecAugment mask
_TOKEN = re.compile("|".join([MARKER.pattern, *map(re.escape, ctc.SPECIAL_TOKENS[:-1])]), re.IGNORECASE)


class CtcFamily(Family):
    """A recognizer that outputs one token per frame; repeats are collapsed and blanks removed."""

    def __init__(self, config: PretrainedConfig, source: Source, settings: Any, trained: bool = False) -> None:
        super().__init__(config, source, settings, trained)
        self.case = settings.text_case if settings.text_case in ctc.CASES else "keep"
        self.form: ctc.UnicodeForm = "NFC"
        self.new_vocabulary = not trained and (settings.vocabulary == "train" or not _has_vocabulary(source))
        self.answers_untrained = not self.new_vocabulary
        if not self.new_vocabulary:
            self.tokenizer = open_checkpoint(AutoTokenizer, source, "tokenizer files")
        self._lengths = _output_lengths(config, source)
        self._longest = 0.0
        # SpecAugment requires its masks to fit into the batch, and the output must not be empty.
        masked = getattr(config, "mask_time_prob", 0) > 0
        length = int(getattr(config, "mask_time_length", 0) or 0)
        self._least = self._width_for(max(2, (length if masked else min(length, USUAL_MASK)) + 1))

    def output_length(self, width: int) -> int:
        """Return the number of output frames for an input of this length; 0 if it is too short."""
        return max(0, int(self._lengths(torch.tensor(width))))

    def _width_for(self, frames: int) -> int:
        width = 1
        while self.output_length(width) < frames:
            width *= 2
        low = width // 2
        while low + 1 < width:
            middle = (low + width) // 2
            low, width = (middle, width) if self.output_length(middle) < frames else (low, middle)
        return width

    def learn_texts(self, texts: Iterable[str], built_from: str | None) -> None:
        """Build the vocabulary if there is none; otherwise choose its letter case and Unicode form."""
        texts = [" ".join(nfc(text).split()) for text in texts]
        if self.new_vocabulary:
            if built_from is None:
                raise RecipeError(
                    "data.streaming: a vocabulary cannot be built from a stream; use a model that has one"
                )
            spoken = texts if self.settings.special_tokens == "stop" else [_TOKEN.sub(" ", text) for text in texts]
            characters = ctc.characters_of(map(self.write, spoken))
            self.tokenizer = ctc.build_tokenizer(characters)
            log.info("vocabulary: %d characters of %s: %s", len(characters), built_from, "".join(characters)[:200])
            return
        known = ctc.known_characters(self.tokenizer)
        if self.settings.text_case == "auto":
            self.case = ctc.choose_case(texts, known, self.language)
        self.form = ctc.choose_form([change_case(text, self.case, self.language) for text in texts], known)
        lost = [character for character in ctc.characters_of(map(self.write, texts)) if character not in known]
        if lost:
            log.warning(
                "the pretrained model's vocabulary lacks %d of the characters in the transcripts (%s); "
                "task.vocabulary: train builds a new vocabulary",
                len(lost),
                "".join(lost)[:60],
            )

    def learn_lengths(self, seconds: np.ndarray, labels: Sequence[list[int]]) -> list[str]:
        """Store the length of the longest clip at the lowest speed."""
        self._longest = float(seconds.max()) / min(self.settings.speed_factors)
        return []

    def recall(self, config: Any) -> None:
        """See `Family.recall`: letter case and Unicode form."""
        case = getattr(config, "transcript_case", "")
        self.case = case if case in ctc.CASES else self.case
        form = getattr(config, "transcript_form", "")
        self.form = form if form in ctc.FORMS else self.form

    def write(self, text: str) -> str:
        """See `Family.write`: in the letter case and the Unicode form of the vocabulary."""
        return unicodedata.normalize(self.form, change_case(super().write(text), self.case, self.language))

    def encode(self, text: str) -> list[int]:
        """See `Family.encode`."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def refusal(self, features: np.ndarray, labels: list[int], fastest: float) -> str | None:
        """See `Family.refusal`: CTC needs a frame for each label, and a blank between two equal labels."""
        frames, needed = self.output_length(int(len(features) / fastest)), ctc.frames_needed(labels)
        if frames >= needed:
            return None
        at_speed = f" at {fastest:g} times its speed (task.speed_factors)" if fastest > 1 else ""
        return (
            f"is too short for its transcript: {len(labels)} characters need at least {needed} frames, but the model "
            f"outputs only {frames}{at_speed}"
        )

    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """See `Family.collate`: `input_values` (or its name in the model), `attention_mask`, `input_lengths`, ..."""
        features = [row["features"] for row in rows]
        lengths = [len(array) for array in features]
        width = max(*lengths, self._least)
        batch: Batch = {
            self.extractor.model_input_names[0]: pad_rows(features, width, float(self.extractor.padding_value)),
            "input_lengths": torch.tensor(lengths, dtype=torch.int64),
            "seconds": torch.tensor([row["seconds"] for row in rows], dtype=torch.float32),
        }
        # Models whose first layer normalizes over time (wav2vec2-base) were trained without a mask.
        if self.extractor.return_attention_mask:
            batch["attention_mask"] = mask_of(lengths, width)
        if "labels" in rows[0]:
            labels = [np.asarray(row["labels"], dtype=np.int64) for row in rows]
            batch["labels"] = pad_rows(labels, max(1, *map(len, labels)), -100, np.int64)
        return batch

    def build(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """See `Family.build`. A new vocabulary gets a new head, even if the old head has the same size."""
        if "layerdrop" not in section.config_overrides:
            self._encoder_config.layerdrop = 0.0
        head = {
            **self.head(),
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "transcript_case": self.case,
            **({"transcript_form": self.form} if self.form != "NFC" else {}),
        }
        with quiet_transformers():
            model = load_pretrained(AutoModelForCTC, self.config, source, section, head)
        if self.new_vocabulary:
            output: Any = getattr(model, "lm_head", None) or model.ctc_head  # the latter is Parakeet's
            nn.init.normal_(output.weight, std=float(getattr(self.config, "initializer_range", 0.02)))
            nn.init.zeros_(output.bias)
        steps = int(self._longest / self._seconds_per_frame()) if self._longest else 0
        self.check_masks(model.config, {*head, *section.config_overrides}, steps, int(self._encoder_config.hidden_size))
        if getattr(model.config, "mask_time_prob", 0) > 0:
            self._least = max(self._least, self._width_for(int(model.config.mask_time_length) + 1))
        freeze: Any = getattr(model, "freeze_feature_encoder", None)
        if freeze is not None and self.settings.freeze_feature_encoder:
            freeze()
        for name, parameter in model.named_parameters():
            if name.endswith("masked_spec_embed"):  # without SpecAugment it would never get a gradient
                parameter.requires_grad_(self.config.mask_time_prob > 0)
        return model

    @property
    def _encoder_config(self) -> Any:
        return getattr(self.config, "encoder_config", self.config)

    def _forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits [rows, longest, vocabulary] and the number of frames without padding, int64 [rows]."""
        names = (self.extractor.model_input_names[0], "attention_mask")
        logits: Tensor = model(**{name: batch[name] for name in names if name in batch}).logits
        return logits, self._lengths(batch["input_lengths"]).clamp(min=0, max=logits.shape[1])

    def _losses(self, logits: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        lengths = (labels >= 0).sum(dim=1)
        return ctc.ctc_losses(logits, frames, labels, lengths, self.tokenizer.pad_token_id)

    kind = "ctc"
    no_items = "CTC sums over all alignments of a transcript: its characters have no separate distributions"

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Family.losses`: the negative log-likelihood, summed over all alignments of the row's labels."""
        return self._losses(*self._forward(model, batch), batch["labels"])

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Family.predict`; `tokens` has one token per frame, including repeats and blanks."""
        logits, frames = self._forward(model, batch)
        tokens, logprobs, confidence = ctc.best_path(logits, frames, self.tokenizer.pad_token_id)
        # Frames beyond a row's end are blank, so that rows of different batches can be stacked.
        outputs = {"tokens": tokens, "confidence": confidence, "seconds": batch["seconds"]}
        real = torch.arange(tokens.shape[1], device=tokens.device) < frames[:, None]
        outputs |= {"hypotheses": tokens.masked_fill(~real, IGNORED), "logprobs": logprobs}
        if "labels" in batch:
            outputs["loss"] = self._losses(logits, frames, batch["labels"])
        return outputs

    def text(self, tokens: Sequence[int]) -> str:
        """See `Family.text`; decoded like `transformers.pipeline`."""
        return " ".join(self.tokenizer.decode([token for token in tokens if token >= 0]).split())

    def words(self, tokens: Sequence[int], seconds: float) -> list[Word]:
        """See `Family.words`: from the frame of a word's first letter to that of its last."""
        step = self._seconds_per_frame()
        said = ctc.word_times(self.tokenizer, [token for token in tokens if token >= 0], step)
        return [Word(word, min(start, seconds), min(end, seconds)) for word, start, end in said]

    def _seconds_per_frame(self) -> float:
        # The stride of the convolutions; for a long input, edge effects are negligible.
        width = 100 * self.rate
        features = self.extract(np.zeros(width, np.float32)) if self._is_spectrogram else np.empty(width)
        return 100.0 / self.output_length(len(features))

    @property
    def _is_spectrogram(self) -> bool:
        return self.extractor.model_input_names[0] != "input_values"


def _has_vocabulary(source: Source) -> bool:
    if source.path is not None:
        return any((source.path / name).is_file() for name in ("vocab.json", "tokenizer.json", "tokenizer_config.json"))
    from transformers.utils import cached_file

    with unasked(source.offline), quiet_transformers():
        return any(
            cached_file(
                source.name, name, revision=source.revision or "main", _raise_exceptions_for_missing_entries=False
            )
            for name in ("vocab.json", "tokenizer.json")
        )


def _output_lengths(config: PretrainedConfig, source: Source) -> Callable[[Tensor], Tensor]:
    """Return the architecture's function from input lengths to numbers of frames, without loading weights."""
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCTC.from_config(config)
    names = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
    found: list[Callable[[Tensor], Tensor]] = [getattr(model, name) for name in names if hasattr(model, name)]
    if not found:
        raise CheckpointError(
            f"{source.name}: {type(model).__name__} does not provide its output length; use a Wav2Vec2, HuBERT, "
            "WavLM, UniSpeech, Wav2Vec2-BERT or Parakeet model"
        )
    return found[0]
