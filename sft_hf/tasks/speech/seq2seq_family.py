"""Speech recognizers with an encoder and an autoregressive decoder: Whisper, Moonshine, Speech2Text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSpeechSeq2Seq, AutoTokenizer, GenerationConfig, GenerationMixin

from sft_hf.core.errors import RecipeError
from sft_hf.core.sources.hub import unasked
from sft_hf.models.formats.whisper_vocabulary import FIRST_MULTILINGUAL
from sft_hf.models.loading import load_pretrained, open_checkpoint, quiet_transformers
from sft_hf.tasks.base import Items
from sft_hf.tasks.speech.family import IGNORED, Family, mask_of, pad_rows
from sft_hf.tasks.speech.languages import language_hint, whisper_language
from sft_hf.tasks.speech.transcripts import Word, spread_words
from sft_hf.tasks.speech.whisper_window import (
    FRAMES_PER_POSITION,
    MIN_SECONDS,
    fit_to_window,
    log_mel,
    order_of,
    split_by_frames,
    whisper_window,
    window_buckets,
    window_seconds,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source
    from sft_hf.tasks.base import Batch

SECONDS_PER_TIMESTAMP = 0.02


class Seq2SeqFamily(Family):
    """A recognizer with an autoregressive decoder and greedy search."""

    def __init__(self, config: PretrainedConfig, source: Source, settings: Any, trained: bool = False) -> None:
        super().__init__(config, source, settings, trained)
        self.tokenizer = open_checkpoint(AutoTokenizer, source, "tokenizer files")
        self.is_whisper = config.model_type == "whisper"
        self.multilingual = self.is_whisper and _is_multilingual(config, source)
        self.prompt = [int(config.decoder_start_token_id)]
        if self.is_whisper:
            self._use_language(source)
        self.end = int(_first(config.eos_token_id) or self.tokenizer.eos_token_id)
        window = float(settings.window) if isinstance(settings.window, (int, float)) else self.max_seconds
        self.windows: tuple[float, ...] = (window,)
        self.max_new_tokens = self._most_tokens
        self.labels_seen: set[int] = set()

    def _use_language(self, source: Source) -> None:
        language = (self.settings.language or "").strip().lower()
        code = whisper_language(language)
        if language and code is None:
            hint = language_hint(language)
            raise RecipeError(f"task.language: Whisper does not know {self.settings.language!r}; {hint}")
        if self.multilingual:
            if not language:
                raise RecipeError(f"task.language: {source.name} is multilingual; say which (english, german, ...)")
            self.tokenizer.set_prefix_tokens(language=language, task=self.settings.task, predict_timestamps=False)
        else:
            if code not in (None, "en") or self.settings.task != "transcribe":
                raise RecipeError(f"task.language: {source.name} only transcribes English")
            self.tokenizer.language = self.tokenizer.task = None
            self.tokenizer.set_prefix_tokens(predict_timestamps=False)
        self.prompt = list(self.tokenizer.prefix_tokens)
        if self.multilingual:
            self._check_prompt(source, str(code))

    def _check_prompt(self, source: Source, code: str) -> None:
        """Check the prompt's tokens: a model with fewer languages than the tokenizer assumes has other tokens there."""
        wanted = [f"<|{code}|>", f"<|{self.settings.task}|>"]
        found = self.tokenizer.convert_ids_to_tokens(self.prompt)[1:3]
        if found != wanted:
            missing = next(token for token, other in zip(wanted, found, strict=True) if token != other)
            key = "task.language" if missing == wanted[0] else "task.task"
            value = self.settings.language if missing == wanted[0] else self.settings.task
            raise RecipeError(
                f"{key}: {source.name} has no token {missing} for {value!r} (it has {found[0]} and {found[1]} in its "
                "place); choose another language, or a model that supports it"
            )

    @property
    def max_seconds(self) -> float:
        """See `Family.max_seconds`: 30 s for Whisper; other models have no limit."""
        return float(self.extractor.chunk_length) if self.is_whisper else math.inf

    @property
    def _most_tokens(self) -> int:
        """The maximum number of tokens after the prompt, from the decoder's positions."""
        names = ("max_target_positions", "max_position_embeddings")
        positions = next((value for name in names if (value := getattr(self.config, name, None))), 512)
        return int(positions) - len(self.prompt)

    def learn_texts(self, texts: Iterable[str], built_from: str | None) -> None:
        """See `Family.learn_texts`: nothing to learn, as the tokenizer is the pretrained model's."""

    def learn_lengths(self, seconds: np.ndarray, labels: Sequence[list[int]]) -> list[str]:
        """Choose Whisper's windows, and the maximum number of tokens: 1.5 times the longest transcript, plus 8."""
        longest = max(map(len, labels))
        self.max_new_tokens = min(longest + longest // 2 + 8, self._most_tokens)
        self.labels_seen = {token for row in labels for token in row}
        if not self.is_whisper or self.settings.window not in ("auto", "buckets"):
            return []
        heard = float(seconds.max()) / min(self.settings.speed_factors)
        self.windows = (window_seconds(heard, self.max_seconds),)
        if self.settings.window == "buckets":
            played = np.concatenate([seconds / speed for speed in self.settings.speed_factors])
            self.windows = window_buckets(played, self.max_seconds)
        windows = " or ".join(f"{window:g}" for window in self.windows)
        return [f"Whisper's window: {windows} of {self.max_seconds:g} s (the longest clip has {heard:.1f} s)"]

    def window_lengths(self, seconds: np.ndarray) -> np.ndarray | None:
        """See `Family.window_lengths`: Whisper's windows."""
        return np.array([self._window_of({"seconds": value}) for value in seconds]) if self.is_whisper else None

    def recall(self, config: Any) -> None:
        """See `Family.recall`: lengths."""
        self.max_new_tokens = int(getattr(config, "transcript_max_new_tokens", self.max_new_tokens))
        longest = float(getattr(config, "audio_window_seconds", self.windows[-1]))
        self.windows = tuple(getattr(config, "audio_window_buckets", None) or (longest,))

    def encode(self, text: str) -> list[int]:
        """See `Family.encode`. Whisper's transcripts begin with a space, as in pretraining."""
        return list(self.tokenizer(f" {text}" if self.is_whisper else text, add_special_tokens=False).input_ids)

    def refusal(self, features: np.ndarray, labels: list[int], fastest: float) -> str | None:
        """See `Family.refusal`: a transcript and its end token must fit into the decoder."""
        if len(labels) + 1 <= self._most_tokens:
            return None
        return f"its transcript has {len(labels)} tokens, and the model writes at most {self._most_tokens - 1}"

    def extract(self, samples: np.ndarray) -> np.ndarray:
        """See `Family.extract`; Whisper's spectrogram is not padded yet."""
        return log_mel(self.extractor, samples) if self.is_whisper else super().extract(samples)

    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return features, `attention_mask`, `seconds`, and given labels `decoder_input_ids` and `labels`.

        `frames` [rows] has the frames of each row's window if windows differ; features are padded to the widest.
        """
        seconds = [row["seconds"] for row in rows]
        features = [row["features"] for row in rows]
        batch: Batch = {"seconds": torch.tensor(seconds, dtype=torch.float32)}
        if self.is_whisper:
            frames = [self._frames(self._window_of(row)) for row in rows]
            widest = max(frames)
            batch["input_features"] = torch.from_numpy(np.stack([fit_to_window(mel, widest) for mel in features]))
            heard = [math.ceil(value * self.rate / self.extractor.hop_length) for value in seconds]
            batch["attention_mask"] = mask_of([min(pair) for pair in zip(frames, heard, strict=True)], widest)
            if len(set(frames)) > 1:
                batch["frames"] = torch.tensor(frames)
        else:
            lengths = [len(array) for array in features]
            name = self.extractor.model_input_names[0]
            batch[name] = pad_rows(features, max(lengths), float(self.extractor.padding_value))
            batch["attention_mask"] = mask_of(lengths, max(lengths))
        if "labels" in rows[0]:
            batch |= self._decoder_batch([row["labels"] for row in rows])
        return batch

    def _window_of(self, row: dict[str, Any]) -> float:
        """Return the smallest window that a row fits into; for clips longer than in training, the next whole second."""
        least = max(row["seconds"], MIN_SECONDS)
        fitting = [window for window in row.get("windows", self.windows) if window >= least]
        return min(fitting, default=window_seconds(row["seconds"], self.max_seconds))

    def _frames(self, window: float) -> int:
        """Return the spectrogram frames of a window, limited by the encoder's positions."""
        positions = round(window * self.rate / self.extractor.hop_length / FRAMES_PER_POSITION)
        return FRAMES_PER_POSITION * min(max(positions, 1), int(self.config.max_source_positions))

    def _decoder_batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Return inputs and targets of the decoder; the tokens of the prompt are not targets."""
        read = [np.asarray([*self.prompt, *row], dtype=np.int64) for row in rows]
        skipped = [IGNORED] * (len(self.prompt) - 1)
        wanted = [np.asarray([*skipped, *row, self.end], dtype=np.int64) for row in rows]
        width = max(len(row) for row in read)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end
        return {
            "decoder_input_ids": pad_rows(read, width, pad, np.int64),
            "labels": pad_rows(wanted, width, IGNORED, np.int64),
        }

    def build(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """See `Family.build`. Tokens that the transcripts need are no longer suppressed."""
        head = self.head()
        model = load_pretrained(AutoModelForSpeechSeq2Seq, self.config, source, section, head)
        if self.is_whisper:
            steps, changed = self._frames(self.windows[0]), {*head, *section.config_overrides}
            self.check_masks(model.config, changed, steps, int(model.config.num_mel_bins))
        generation: Any = model.generation_config
        generation.num_beams = 1  # a pipeline's default of 5 beams would give other texts than were scored
        generation.do_sample = False
        if self.is_whisper:
            # Sinusoids, which Whisper does not train; after loading, they would be trainable.
            model.get_encoder().embed_positions.requires_grad_(False)
            generation.is_multilingual = self.multilingual
            generation.return_timestamps = False
            generation.forced_decoder_ids = None
            generation.no_timestamps_token_id = self.prompt[-1]
            if self.multilingual:
                generation.language, generation.task = self.settings.language.strip().lower(), self.settings.task
            suppressed = getattr(generation, "suppress_tokens", None) or []
            generation.suppress_tokens = [token for token in suppressed if token not in self.labels_seen] or None
        return model

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Family.losses`: cross-entropy of each token given the ones before it."""
        parts = split_by_frames(batch)
        losses = [self._part_losses(model, part) for _, part in parts]
        return losses[0] if len(parts) == 1 else torch.cat(losses)[order_of(parts)]

    def _part_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_losses(self._logits(model, batch), batch["labels"]).sum(dim=1)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits [rows, tokens, vocabulary]."""
        with self._window(model, batch):
            inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "seconds")}
            logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """See `Task.items`: the label tokens including the end, row by row."""
        parts = split_by_frames(batch)
        logits = torch.cat([self._logits(model, part) for _, part in parts])
        if len(parts) > 1:
            logits = logits[order_of(parts)]
        real = batch["labels"] != IGNORED
        rows = real.nonzero()[:, 0]
        return Items(logits[real].float(), batch["labels"][real], rows, len(real))

    @contextmanager
    def _window(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        if not self.is_whisper:
            yield
            return
        with whisper_window(model, batch["input_features"].shape[-1]):
            yield

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Family.predict`; `tokens` of the text, with `task.timestamps` also timestamps around each segment."""
        parts = split_by_frames(batch)
        found = [self._predict_part(model, part) for _, part in parts]
        if len(parts) == 1:
            return found[0]
        for name in ("tokens", "hypotheses", "logprobs"):
            width = max(outputs[name].shape[1] for outputs in found)
            for outputs in found:
                outputs[name] = functional.pad(outputs[name], (0, width - outputs[name].shape[1]), value=IGNORED)
        order = order_of(parts)
        return {name: torch.cat([outputs[name] for outputs in found])[order] for name in found[0]}

    def _predict_part(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        name = self.extractor.model_input_names[0]
        mask = {} if self.is_whisper else {"attention_mask": batch["attention_mask"]}
        with self._window(model, batch), quiet_transformers():
            encoded = model.get_encoder()(batch[name], **mask)
            known = {"encoder_outputs": encoded, **mask}
            options: dict[str, Any] = {"max_new_tokens": self._limit(batch), "num_beams": 1, "do_sample": False}
            if self.is_whisper and self.settings.timestamps:
                tokens, texts = self._with_timestamps(model, batch[name], options)
            else:
                # Not Whisper's own `generate`, which continues after two consecutive timestamps, and then fails with
                # the precomputed encoder output.
                prompt = torch.tensor(self.prompt, device=batch[name].device).expand(len(batch[name]), -1)
                sequences = GenerationMixin.generate(model, decoder_input_ids=prompt, **known, **options)
                texts = [self._said(row) for row in sequences[:, len(self.prompt) :].tolist()]
                tokens = texts
            outputs = {
                "tokens": pad_rows(
                    [np.asarray(row, dtype=np.int64) for row in tokens], _width(tokens), IGNORED, np.int64
                ),
                **self._score(model, known, texts, batch[name].device),
                "seconds": batch["seconds"],
            }
            if "labels" in batch:
                outputs["loss"] = self._losses_of(model, known, batch)
        return {key: value.to(batch[name].device) for key, value in outputs.items()}

    def _limit(self, batch: Batch) -> int:
        """Return the maximum number of tokens, which is higher in a window longer than those of training."""
        if self.is_whisper and batch["input_features"].shape[-1] > self._frames(self.windows[-1]):
            return self._most_tokens
        return self.max_new_tokens

    def _losses_of(self, model: Any, known: dict[str, Any], batch: Batch) -> Tensor:
        logits = model(**known, decoder_input_ids=batch["decoder_input_ids"], use_cache=False).logits
        return token_losses(logits, batch["labels"]).sum(dim=1)

    def _score(
        self, model: Any, known: dict[str, Any], rows: list[list[int]], device: torch.device
    ) -> dict[str, Tensor]:
        """Return `hypotheses` (tokens and end), `logprobs`, and `confidence`, the geometric mean of probabilities."""
        read = self._decoder_batch([row[: self._most_tokens - 1] for row in rows])
        labels = read["labels"].to(device)
        logits = model(**known, decoder_input_ids=read["decoder_input_ids"].to(device), use_cache=False).logits
        losses = token_losses(logits, labels)
        confidence = torch.exp(-losses.sum(dim=1) / (labels != IGNORED).sum(dim=1))
        return {"hypotheses": labels, "logprobs": -losses, "confidence": confidence}

    def _said(self, tokens: list[int]) -> list[int]:
        """Return the tokens before the end."""
        stops = {self.end, self.tokenizer.pad_token_id}
        return tokens[: next((index for index, token in enumerate(tokens) if token in stops), len(tokens))]

    def _with_timestamps(
        self, model: Any, features: Tensor, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[list[int]]]:
        first = self.prompt[-1] + 1  # <|0.00|> follows <|notimestamps|>
        found = model.generate(features, return_timestamps=True, return_segments=True, **options)["segments"]
        tokens: list[list[int]] = []
        texts: list[list[int]] = []
        for segments in found:
            marked: list[int] = []
            plain: list[int] = []
            for segment in segments:
                ids = [token for token in segment["tokens"].tolist() if token < first and token != self.end]
                begin, end = (first + round(float(segment[key]) / SECONDS_PER_TIMESTAMP) for key in ("start", "end"))
                marked += [begin, *ids, end]
                plain += ids
            tokens.append(marked)
            texts.append(plain)
        return tokens, texts

    def text(self, tokens: Sequence[int]) -> str:
        """See `Family.text`."""
        return " ".join(self.tokenizer.decode(self._without_times(tokens), skip_special_tokens=True).split())

    def _without_times(self, tokens: Sequence[int]) -> list[int]:
        last = self.prompt[-1] if self.is_whisper else math.inf
        return [token for token in tokens if 0 <= token <= last]

    def words(self, tokens: Sequence[int], seconds: float) -> list[Word]:
        """See `Family.words`: spread over the segment between two timestamps, or without timestamps over the clip."""
        if not (self.is_whisper and self.settings.timestamps):
            return spread_words(self.text(tokens), 0.0, seconds)
        words: list[Word] = []
        segment: list[int] = []
        start = None
        for token in tokens:
            if token <= self.prompt[-1]:
                segment.append(token)
                continue
            time = min((token - self.prompt[-1] - 1) * SECONDS_PER_TIMESTAMP, seconds)
            if start is not None and segment:
                words += spread_words(self.text(segment), start, time)
                segment = []
            start = time
        return words

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """See `Family.save`; the learned lengths are stored in the config."""
        model.config.transcript_max_new_tokens = self.max_new_tokens
        if self.is_whisper:
            model.config.audio_window_seconds = self.windows[-1]
            if len(self.windows) > 1 or hasattr(model.config, "audio_window_buckets"):  # of an earlier training
                model.config.audio_window_buckets = list(self.windows)
        super().save(model, folder)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token, float32 [rows, longest], 0 where there is no label."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view_as(labels)


def _width(rows: Sequence[Sequence[int]]) -> int:
    return max(1, *map(len, rows))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def _is_multilingual(config: PretrainedConfig, source: Source) -> bool:
    try:
        with unasked(source.offline), quiet_transformers():
            saved = GenerationConfig.from_pretrained(source.location(), revision=source.revision or "main")
    except (OSError, ValueError):
        saved = None
    told = getattr(saved, "is_multilingual", None)
    return bool(config.vocab_size >= FIRST_MULTILINGUAL if told is None else told)
