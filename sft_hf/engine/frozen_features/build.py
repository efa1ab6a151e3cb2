"""Cache the outputs of a model's frozen lower part for the training rows: computed once, then read from disk.

Every row goes through the frozen part alone, in a batch of one, so that its features do not depend on other rows:
they are the same in every order, on any number of processes, in a resumed run, and whether they were computed now or
by another run. Training always reads them back from disk. Compared with a run without the cache, the last bits differ
where a kernel rounds differently in a larger batch. Before training, losses and gradients of a few rows are computed
both ways, and the cache is not used if they differ by more than a tolerance.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sft_hf.core.console import progress
from sft_hf.core.errors import SftError, Terminated
from sft_hf.core.filesystem import free_bytes, human_bytes
from sft_hf.data.examples import Examples
from sft_hf.data.row_store import RowStore
from sft_hf.engine import process
from sft_hf.engine.epochs import InMemoryEpochs
from sft_hf.engine.frozen_features.replay import Replay, record
from sft_hf.engine.frozen_features.serve import ServedRows, ServedSet, ServedTask
from sft_hf.engine.frozen_features.trace import Declined, FrozenPart, find_frozen_part
from sft_hf.engine.step import seed_step
from sft_hf.models.freezing import set_modes
from sft_hf.tasks.base import Batch, to_device

if TYPE_CHECKING:
    from sft_hf.engine.state import Training, TrainState

log = logging.getLogger("sft_hf")

FOLDER = "frozen-features"  # in the cache folder
FORMAT = 1  # of the recorded tensors; a change here invalidates the cache
TRIED_ROWS = 4  # from the shortest to the longest, for finding the frozen part and for the comparison
TOLERANCE = 1e-5  # relative, for losses and gradients, in float32 on a CPU
COARSE_TOLERANCE = 3e-2  # in 16 bits, and on GPUs, whose convolutions round to 10 bits
ABOUT_LABELS = ("id2label", "label2id", "num_labels", "num_classes", "label_names", "problem_type", "_name_or_path")
"""Fields of a config that do not affect the backbone."""


def with_frozen_features(training: Training, state: TrainState) -> Training:
    """Return the training with its frozen lower part served from the cache, or unchanged if that is not possible.

    Applies only to recipes with `train.freeze`. If the cache is not used, one log line gives the reason. All ranks make
    the same decision. It is recorded in `state`; a warning is logged if a resumed run decides differently, since its
    results may differ in the last bits.

    Raises Terminated, on all ranks, when one of them received a signal to stop.
    """
    section = training.recipe.train
    if not section.freeze or section.frozen_features == "off":
        return training
    set_modes(training.model)
    try:
        served = _Builder(training).build()
    except Declined as reason:
        log.info("frozen features are not cached (train.frozen_features): %s", reason)
        served = training
    used = served is not training
    if state.frozen_features not in (None, used):
        log.warning(
            "the run was started with%s the frozen-feature cache; results may differ in the last bits",
            "out" if used else "",
        )
    state.frozen_features = used
    return served


class _Builder:
    """Finds and tests the frozen part, computes missing features, and rebuilds the training on them."""

    def __init__(self, training: Training) -> None:
        self.training, self.task, self.accelerator = training, training.task, training.accelerator
        self.model = self.accelerator.unwrap_model(training.model)

    def build(self) -> Training:
        """See `with_frozen_features`. Raises Declined, on all ranks or on none."""
        with self._together("the model could not be split"):
            self.examples = self._examples()
            self.part, self.tried_bytes = self._try()
            self.store = RowStore(FOLDER, self._key(), int(self.training.recipe.train.frozen_features_gb * 1e9))
            self._check_room()
        with self._together("the features could not be stored"):
            self.store.open()
            mine, computed = self._compute()
        names, computed = self._share(mine, computed)
        with self._together("the features could not be read"):
            self.store.open()
            if any(name not in self.store for name in names):
                raise Declined("the processes do not see the same cache folder")
            size = self.store.size(set(names))
        log.info(
            "the frozen part (%d modules) runs once for each row: %s for %d rows in %s, %d of them computed now",
            len(self.part.modules),
            human_bytes(size),
            len(names),
            self.store.folder,
            computed,
        )
        task = ServedTask(self.task, self.replay, lambda row: self.store.read(names[row]))
        data = ServedSet(self.training.data, self.examples)
        return replace(self.training, task=task, data=data)  # type: ignore[arg-type]

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        """Continue on all ranks or on none: a failure on one raises Declined on all."""
        reason: str | None = None
        stopped = False
        try:
            yield
        except Terminated:
            stopped = True
        except Declined as error:
            reason = str(error)
        except (SftError, OSError) as error:
            reason = f"{what}: {error}"
        except Exception as error:  # an architecture that this code does not handle: train without the cache
            log.debug("the frozen-feature cache failed", exc_info=True)
            reason = f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        interrupted, declined = process.on_any_rank(self.accelerator, stopped, reason is not None)
        if interrupted:
            raise Terminated(
                "stopped by a signal while the frozen part was computed; --resume continues (in Python: resume=True)"
            )
        if declined:
            raise Declined(reason or "another process could not use the cache; see its log")

    def _examples(self) -> Examples:
        """Return the training rows. Raises Declined if they are not the same in every epoch."""
        data = self.training.data
        if name := self.training.techniques.forbids_frozen_features:
            raise Declined(f"the technique {name} needs the whole model in every epoch")
        if not isinstance(data, InMemoryEpochs):
            raise Declined("data.streaming reads rows as they come")
        if self.training.recipe.train.torch_compile == "on":
            raise Declined(
                "compiled models cannot be split into a frozen and a trained part (train.torch_compile: auto)"
            )
        if data.examples.views is not None:
            raise Declined(
                "the training rows are augmented at random (to turn it off: for images, task.augmentation: evaluation; "
                "for speech, task.speed_factors: [1.0] and task.noise_probability: 0)"
            )
        return data.examples

    # --- testing it ----------------------------------------------------------------------------------------------

    def _batch(self, rows: Iterable[int]) -> Batch:
        batch = self.task.collate([self.examples.features[row] for row in rows])
        return to_device(batch, self.accelerator.device)

    def _losses(self, batch: Batch) -> Tensor:
        with self.accelerator.autocast():
            return self.task.losses(self.training.model, batch)

    def _record(self, row: int, batch: Batch | None = None) -> list[Tensor]:
        """Return the tensors of one row, computed in a batch of one, without the row dimension. Raises Declined."""
        alone = self._batch([row]) if batch is None else batch
        found = record(self.model, self.part, lambda: self._losses(alone))
        if any(tensor.ndim < 1 or len(tensor) != 1 for tensor in found):
            raise Declined("the frozen part's output has no row dimension")
        return [tensor[0] for tensor in found]

    def _try(self) -> tuple[FrozenPart, float]:
        """Find the frozen part, and compare losses and gradients with and without it; also return its bytes per row."""
        order = np.argsort(self.examples.lengths, kind="stable")
        rows = [
            int(order[place])
            for place in np.linspace(0, len(order) - 1, min(TRIED_ROWS, len(order))).round().astype(int)
        ]
        batch = self._batch(rows)
        with _untouched(self.model):
            seed_step(self.training.recipe.seed, 0, 0)
            self.part = find_frozen_part(self.model, lambda: self._losses(batch))
            first = [self._record(row) for row in rows]
            seed_step(self.training.recipe.seed, 1, 0)
            again = [self._record(row) for row in rows]
            if not all(torch.equal(a, b) for a, b in zip(_flat(first), _flat(again), strict=True)):
                raise Declined("they are random (for speech, task.mask_time_prob: 0 and task.mask_feature_prob: 0)")
            self._compare(rows, batch, first)
        return self.part, sum(tensor.nbytes for tensor in _flat(first)) / len(rows)

    def _compare(self, rows: list[int], batch: Batch, recorded: list[list[Tensor]]) -> None:
        self.replay = Replay(self.model, self.part)
        served = ServedTask(self.task, self.replay, dict(zip(rows, recorded, strict=True)).__getitem__)
        blank = ServedRows(self.examples)
        given = to_device(served.collate([blank[row] for row in rows]), self.accelerator.device)

        def replayed() -> Tensor:
            with self.accelerator.autocast():
                return served.losses(self.training.model, given)

        whole, cut = self._gradients(lambda: self._losses(batch)), self._gradients(replayed)
        exact = self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "no"
        allowed = TOLERANCE if exact else COARSE_TOLERANCE
        for name, left, right in (("loss", whole[:1], cut[:1]), ("gradient", whole[1:], cut[1:])):
            difference = _difference(left, right)
            log.debug("frozen features: the %s differs by %.1e", name, difference)
            if not difference <= allowed:
                raise Declined(
                    f"a row's {name} would change (difference {difference:.1e}): the frozen part's output for a row "
                    "depends on the other rows in the batch"
                )

    def _gradients(self, losses: Callable[[], Tensor]) -> list[Tensor]:
        """Return the rows' losses, and the gradient of their sum for each parameter that has one."""
        seed_step(self.training.recipe.seed, 0, 0)
        self.model.zero_grad(set_to_none=True)
        values = losses()
        values.sum().backward()  # type: ignore[no-untyped-call]
        found = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.model.zero_grad(set_to_none=True)
        return [values.detach(), *found]

    # --- computing it --------------------------------------------------------------------------------------------

    def _key(self) -> str:
        """Return a hash of what the tensors depend on except rows: weights, architecture, cuts, precision, versions."""
        environment = process.environment(self.accelerator)
        kind = type(
            self.model
        )  # for a model with its own code (trust_remote_code), the module name includes the commit
        config = self.model.config.to_dict() if hasattr(self.model, "config") else {}
        what = {
            "format": FORMAT,
            "model": f"{kind.__module__}.{kind.__qualname__}",
            "timm": metadata.version("timm") if hasattr(self.model, "timm_model") else None,
            "weights": _weights(self.model, self.part),
            "modules": [repr(self.model.get_submodule(name)) for name in self.part.modules],
            "config": {name: value for name, value in config.items() if name not in ABOUT_LABELS},
            "part": repr(self.part),
            "attention": getattr(getattr(self.model, "config", None), "_attn_implementation", None),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            **{name: environment[name] for name in ("device", "num_threads", "mixed_precision", "versions")},
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _check_room(self) -> None:
        """Raise Declined if the rows would not fit; delete the least recently used entries to make room."""
        needed, limit = int(self.tried_bytes * len(self.examples)), self.store.limit
        if needed > limit:
            raise Declined(
                f"they take about {human_bytes(needed)}, and train.frozen_features_gb allows {human_bytes(limit)}"
            )
        if self.accelerator.is_main_process:
            self.store.open()  # entries of this part are kept
            missing = max(0, needed - self.store.size())
            self.store.make_room(missing)
            if missing > 0.9 * free_bytes(self.store.root):
                raise Declined(f"they take about {human_bytes(needed)}, and the disk of {self.store.root} is full")

    def _compute(self) -> tuple[list[str], int]:
        """Return the names of this rank's rows, computing those that are not in the cache. Raises StorageError."""
        names, computed = [], 0
        mine = range(self.accelerator.process_index, len(self.examples), self.accelerator.num_processes)
        budget = self.store.limit
        try:
            for row in progress(mine, "computing the frozen part", len(mine)):
                batch = self.task.collate([self.examples.features[row]])
                name = _digest(batch)
                names.append(name)
                if name in self.store:
                    continue
                tensors = self._record(row, to_device(batch, self.accelerator.device))
                budget -= sum(tensor.nbytes for tensor in tensors) * self.accelerator.num_processes
                if budget < 0:
                    raise Declined("they take more than train.frozen_features_gb allows")
                self.store.add(name, tensors)
                computed += 1
        finally:
            self.store.flush()  # for the next run, if this one is interrupted
        return names, computed

    def _share(self, mine: list[str], computed: int) -> tuple[list[str], int]:
        """Return the names of all rows and the number computed over all ranks, the same on every rank."""
        table = np.zeros((len(self.examples) + 1, 4), dtype=np.int64)
        place, world = self.accelerator.process_index, self.accelerator.num_processes
        words = [np.frombuffer(bytes.fromhex(name), np.int64) for name in mine]
        table[place:-1:world] = np.array(words, dtype=np.int64).reshape(-1, 4)
        table[-1, 0] = computed
        total = process.sum_over_ranks(torch.from_numpy(table).to(self.accelerator.device), self.accelerator)
        rows = total.cpu().numpy()
        return [row.tobytes().hex() for row in rows[:-1]], int(rows[-1, 0])


def _difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the norm of the differences relative to the norm of `left`; infinite if the numbers of tensors differ."""
    if len(left) != len(right):
        return math.inf
    both = [
        (a.cpu().double(), b.cpu().double()) for a, b in zip(left, right, strict=True)
    ]  # Apple's GPUs have no double
    pairs = [((a - b).square().sum(), a.square().sum()) for a, b in both]
    return math.sqrt(sum(float(apart) for apart, _ in pairs) / max(sum(float(size) for _, size in pairs), 1e-60))


def _flat(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [tensor for row in rows for tensor in row]


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore all buffers, such as batch norm statistics, on exit."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _weights(model: nn.Module, part: FrozenPart) -> str:
    """Return the SHA-256 of the frozen parameters and buffers, and of those of the modules around them."""
    digest = hashlib.sha256()
    for names, recurse in ((part.modules, True), (part.containers, False)):
        for name in names:
            module = model.get_submodule(name)
            for kind in (module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse)):
                for inner, tensor in kind:
                    digest.update(f"{name}.{inner} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _digest(batch: Batch) -> str:
    """Return the SHA-256 of a collated row without its label."""
    digest = hashlib.sha256()
    for name in sorted(batch.keys() - {"labels"}):
        digest.update(f"{name} {batch[name].dtype} {tuple(batch[name].shape)}\n".encode())
        digest.update(_bytes(batch[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
