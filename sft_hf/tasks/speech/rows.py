"""Clips as model inputs: decoded and converted to features on access, and cached in memory up to a limit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.data.columns import Column
from sft_hf.data.loading.media import content_digest
from sft_hf.data.row_cache import RowCache
from sft_hf.tasks.speech.audio import read_audio, resample

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_hf.data.examples import Examples
    from sft_hf.tasks.speech.family import Family

CACHE_BYTES = 2**31
"""Limit of one split's samples and features, per process; other clips are decoded again each time."""


@dataclass(frozen=True)
class Clip:
    """A recording, or the part of it from `start` to `end` seconds."""

    recording: Any
    start: float = 0.0
    end: float | None = None


def clip_of(cell: Any) -> Clip:
    """Return the clip of a cell: a recording, or a part of it given by "start" and "end" (seconds, or None)."""
    if isinstance(cell, dict) and (cell.get("start") is not None or cell.get("end") is not None):
        end = cell.get("end")
        return Clip(cell, float(cell.get("start") or 0.0), None if end is None else float(end))
    return Clip(cell)


class Recordings(Sequence[Clip]):
    """A column of recordings, or of parts of them."""

    def __init__(self, table: Dataset, name: str) -> None:
        self.column = Column(table, name)

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        return clip_of(self.column[index])


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training clip; see `SpeechRecognitionSettings`."""

    speed_factors: tuple[float, ...] = (1.0,)
    noise_snr_db: tuple[float, float] | None = None
    noise_probability: float = 0.0
    longest: float = math.inf

    def __bool__(self) -> bool:
        return set(self.speed_factors) != {1.0} or (self.noise_snr_db is not None and self.noise_probability > 0)

    def apply(self, samples: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
        """Return the clip at a random speed at which it fits into `longest` seconds, with noise at random."""
        fitting = [factor for factor in self.speed_factors if len(samples) / rate / factor <= self.longest]
        factors = fitting or [max(self.speed_factors)]
        samples = change_speed(samples, float(generator.choice(factors)), rate)
        if self.noise_snr_db is not None and generator.random() < self.noise_probability:
            samples = add_noise(samples, float(generator.uniform(*self.noise_snr_db)), generator)
        return samples


def change_speed(samples: np.ndarray, factor: float, rate: int) -> np.ndarray:
    """Speed up a clip by `factor`, which changes both pitch and duration.

    Source: T. Ko, V. Peddinti, D. Povey and S. Khudanpur, Audio augmentation for speech recognition, Interspeech 2015.
    """
    return resample(samples, rate * factor, rate)


def add_noise(samples: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """Add white noise, `snr_db` decibels below the clip's mean power; a silent clip is unchanged."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    if not power:
        return samples
    noise = generator.standard_normal(len(samples), dtype=np.float32)
    return samples + noise * np.float32(np.sqrt(power / 10 ** (snr_db / 10)))


def clip_generator(seed: int, epoch: int, row_id: int) -> np.random.Generator:
    """Return the random generator of a clip in an epoch, independent of its batch, rank or worker."""
    return np.random.default_rng([seed, epoch, row_id, 0x5BEEC4])


class ClipStore:
    """The samples and features of a split's clips, cached in memory up to `budget` bytes."""

    def __init__(
        self,
        clips: Sequence[Clip],
        rate: int,
        extract: Callable[[np.ndarray], np.ndarray],
        keep_samples: bool = False,
        budget: int = CACHE_BYTES,
        disk: RowCache | None = None,
    ) -> None:
        """`disk`: features extracted by earlier runs, see `Family.feature_cache`."""
        self.clips, self.rate, self.extract, self.keep_samples, self.disk = clips, rate, extract, keep_samples, disk
        self._left = budget
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._names: dict[int, str | None] = {}
        self._digests: dict[str, str | None] = {}

    def samples(self, index: int) -> np.ndarray:
        """Return mono float32 at the model's rate. Raises DataError, StorageError."""
        clip = self.clips[index]
        return self._cached(
            ("samples", index),
            lambda: read_audio(clip.recording, self.rate, start=clip.start, end=clip.end),
            keep=self.keep_samples,
        )

    def features(self, index: int) -> np.ndarray:
        """Return the features of the clip. Raises DataError, StorageError."""
        return self._cached(("features", index), lambda: self._from_disk(index), keep=True)

    def _from_disk(self, index: int) -> np.ndarray:
        if self.disk is None:
            return self.extract(self.samples(index))
        if index not in self._names:
            self._names[index] = self._name(self.clips[index])
        name = self._names[index]
        found = None if name is None else self.disk.find(name)
        if found is not None:
            return found[0]
        features = self.extract(self.samples(index))
        if name is not None:
            self.disk.keep(name, [features])
        return features

    def _name(self, clip: Clip) -> str | None:
        """Return the cache key of a clip's features: a digest of its file and of the part."""
        recording = clip.recording
        path = recording.get("path") if isinstance(recording, dict) and not recording.get("bytes") else None
        digest = self._digests.get(path) if path else None
        if digest is None:
            digest = content_digest(recording)
            if path:
                self._digests = {path: digest}  # only of the last file, whose parts usually follow each other
        if digest is None or (clip.end is None and not clip.start):
            return digest
        return hashlib.sha256(f"{digest} {clip.start!r} {clip.end!r}".encode()).hexdigest()

    def only(self, indices: Sequence[int]) -> ClipStore:
        """Return a store of these clips, including what is cached in memory."""
        chosen = ClipStore([], self.rate, self.extract, self.keep_samples, self._left, self.disk)
        chosen.clips = _Chosen(self.clips, indices)
        names = ("samples", "features")
        found = {(name, new): self._kept.get((name, old)) for new, old in enumerate(indices) for name in names}
        chosen._kept = {key: value for key, value in found.items() if value is not None}
        chosen._names = {new: self._names[old] for new, old in enumerate(indices) if old in self._names}
        return chosen

    def _cached(self, key: tuple[str, int], make: Callable[[], np.ndarray], keep: bool) -> np.ndarray:
        if key in self._kept:
            return self._kept[key]
        value = make()
        if keep and value.nbytes <= self._left:
            self._left -= value.nbytes
            self._kept[key] = value
        return value


class _Chosen(Sequence[Clip]):
    """A selection of clips, in any order."""

    def __init__(self, clips: Sequence[Clip], indices: Sequence[int]) -> None:
        self.clips, self.indices = clips, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.clips[self.indices[index]]


class SpeechRows(Sequence[dict[str, Any]]):
    """The features of a split in one epoch: augmented according to its seeds, or unchanged."""

    def __init__(
        self,
        store: ClipStore,
        seconds: np.ndarray,
        labels: Sequence[list[int]] | None,
        augmentation: Augmentation | None = None,
        seeds: Sequence[tuple[int, int, int]] = (),
        windows: tuple[float, ...] | None = None,
        blank: bool = False,
    ) -> None:
        """`windows`: lengths of Whisper's window in seconds, of which a row uses the smallest that it fits into; None:
        those of training.

        `blank`: zeros in place of features.
        """
        self.store, self.seconds, self.labels, self.windows = store, seconds, labels, windows
        self.augmentation, self.seeds, self.blank = augmentation, seeds, blank
        self._shapes: dict[int, tuple[int, ...]] = {}

    def in_windows(self, windows: tuple[float, ...]) -> SpeechRows:
        """Return the same rows for other windows."""
        rows = copy(self)
        rows.windows = windows
        return rows

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        row: dict[str, Any] = {"seconds": float(self.seconds[index])}
        if self.augmentation:
            generator = clip_generator(*self.seeds[index])
            samples = self.augmentation.apply(self.store.samples(index), self.store.rate, generator)
            row |= {"features": self.store.extract(samples), "seconds": len(samples) / self.store.rate}
        else:
            row["features"] = self._zeros(index) if self.blank else self.store.features(index)
        if self.labels is not None:
            row["labels"] = self.labels[index]
        if self.windows is not None:
            row["windows"] = self.windows
        return row

    def _zeros(self, index: int) -> np.ndarray:
        """Return zeros of the features' shape that share the memory of one number; decodes the row at most once."""
        if index not in self._shapes:
            self._shapes[index] = self.store.features(index).shape
        return np.broadcast_to(np.float32(0), self._shapes[index])


def in_own_window(examples: Examples, family: Family, seconds: np.ndarray) -> tuple[Examples, str]:
    """Return rows as the pretrained model expects them, and a description of the differences from training.

    Training may use a shorter window, in which a Whisper that was not trained for it writes words that were not spoken.
    """
    limit, windows = family.max_seconds, family.window_lengths(seconds)
    if windows is None or (windows == limit).all():
        return examples, ""
    assert isinstance(examples.features, SpeechRows)
    features = examples.features.in_windows((limit,))
    return replace(examples, features=features), f", in its own window of {limit:g} seconds"


COSTS_PER_SECOND = 100


def batching_cost(seconds: np.ndarray) -> np.ndarray:
    """Return the length by which rows are batched, in frames of 10 ms."""
    return np.maximum(1, np.round(np.asarray(seconds) * COSTS_PER_SECOND)).astype(np.int64)
