"""The processes of a run: how many, on what device, with how many threads, in what precision."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import psutil
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from sft_hf.core.errors import FailedElsewhere, RecipeError

log = logging.getLogger("sft_hf")

# Messages of Apple's GPUs, and of CPUs on Windows, that Accelerate does not recognize.
_NO_MEMORY = ("MPS backend out of memory", "DefaultCPUAllocator: not enough memory")


def build_accelerator(mixed_precision: str, num_threads: int | str, *, announce: bool = True) -> Accelerator:
    """Return the Accelerator of this process and set its threads; log device, threads and precision if `announce`.

    `mixed_precision` is auto, no, bf16 or fp16; `num_threads` a number or auto. Raises RecipeError if the device does
    not support the precision.
    """
    no_device = not torch.accelerator.is_available()
    # Without a GPU, a plain Accelerator() lets every rank train alone; cpu=True puts them in one group (gloo).
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = no_device or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    precision = choose_precision(mixed_precision, cpu)
    # Both are singletons; a second run in this process (a fold, a test) may use another precision.
    AcceleratorState._reset_state()  # type: ignore[no-untyped-call]
    if world_size == 1:
        PartialState._reset_state()  # type: ignore[no-untyped-call]
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    except ValueError as error:  # not supported by the device, such as Apple's before macOS 14
        raise RecipeError(
            f"train.mixed_precision: {precision} does not work here; choose no or auto ({error})"
        ) from None
    if accelerator.num_processes > 1:
        atexit.register(leave_process_group)
    threads = set_threads(num_threads)
    make_deterministic()
    if cpu:
        keep_freed_memory()
    count = accelerator.num_processes
    log.log(
        logging.INFO if announce else logging.DEBUG,
        "%d process%s on %s, %d thread%s each, mixed precision %s",
        count,
        "" if count == 1 else "es",
        device_name(accelerator.device),
        threads,
        "" if threads == 1 else "s",
        precision,
    )
    return accelerator


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore Accelerate's state and torch's threads after the block, which may run during a training.

    A callback may predict with another model, and building an Accelerator changes the state for the whole process.
    """
    states = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState)]
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        for kind, before in states:
            if before:
                kind._shared_state.clear()
                kind._shared_state.update(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def leave_process_group() -> None:
    """Destroy the process group, if there is one: otherwise its threads may abort the interpreter at exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_over_ranks(value: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the sum of a tensor over all ranks, the same on each."""
    if accelerator.num_processes == 1:
        return value
    total: Tensor = accelerator.reduce(value, reduction="sum")
    return total


def on_any_rank(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any rank, so that all ranks do the same."""
    if accelerator.num_processes == 1:
        return list(flags)
    numbers = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [bool(number > 0) for number in sum_over_ranks(numbers, accelerator).tolist()]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception means that a device, or the machine, is out of memory."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error) or any(w in str(error) for w in _NO_MEMORY)


def free_memory(device: torch.device) -> None:
    """Free the memory that a failed pass has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def on_main_process(accelerator: Accelerator, action: Callable[[], Any]) -> None:
    """Run `action` on rank 0 while the others wait. If it fails, all ranks fail, and none is left waiting."""
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as error:
            failure = error
    if accelerator.num_processes > 1:
        code = getattr(failure, "exit_code", 1) if failure else 0
        code = int(sum_over_ranks(torch.tensor(code, device=accelerator.device), accelerator))
        if code and failure is None:
            raise FailedElsewhere(code)
    if failure is not None:
        raise failure


def choose_precision(wanted: str, cpu: bool) -> str:
    """Resolve `auto`: bf16 where the hardware supports it, fp16 on older GPUs, otherwise no. Raises RecipeError."""
    if wanted == "fp16" and cpu:
        raise RecipeError("train.mixed_precision: fp16 needs a GPU; on a CPU choose bf16, no or auto")
    if wanted != "auto":
        return wanted
    if cpu:
        return "bf16" if _cpu_multiplies_bf16() else "no"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "no"


def _cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has bf16 instructions (AVX512-BF16 or AMX); emulation is slower than fp32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def set_threads(num_threads: int | str) -> int:
    """Set torch's CPU threads; auto divides the cores available to this process by the number of local processes.

    `accelerate launch` exports OMP_NUM_THREADS=1 if the user has not set it, which leaves all cores but one idle.
    """
    if num_threads == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if torch.get_num_threads() != int(num_threads):
        torch.set_num_threads(int(num_threads))
    return int(num_threads)


def make_deterministic() -> None:
    """Make torch use deterministic algorithms where they exist, so that repeated runs are bitwise identical.

    Otherwise two threads accumulate the gradient of an indexed tensor in an order that differs from run to run: the
    position embeddings of Whisper's decoder then differ in the last bit. Operations without a deterministic
    implementation (some on GPUs) still run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Same as use_deterministic_algorithms(True, warn_only=True) without importing the compiler, which takes a second;
    # for compiled models, `models.speed` sets it in the compiler.
    torch.set_deterministic_debug_mode("warn")
    # A debugging aid that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Make glibc's allocator keep large freed blocks instead of returning them to the kernel.

    A training step on the CPU repeatedly frees and allocates the same tensors of many megabytes. Getting them from the
    kernel each time means page faults and zeroing: the text recipe trained in 292 s with 24 million page faults before,
    in 269 s with 1.5 million after, and used up to 5.9 GB of memory instead of 3.9. Other allocators and systems are
    not changed.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
        for option, size in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (top_pad, 1 << 28)):
            mallopt(option, size)


def device_name(device: torch.device) -> str:
    """Return the device's name for display: the GPU's model, or the device type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory use so far, in bytes: of the GPU, or else resident memory of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process, in bytes.

    Read from /proc on Linux: getrusage also counts the memory that the parent process had when it started this one.
    Windows has neither.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return the machine and the package versions, for metrics.json."""
    packages = ("sft-hf", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": device_name(accelerator.device),
        "num_processes": accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "versions": {name: _version(name) for name in packages},
    }


@functools.cache  # every checkpoint records the versions, and each look-up reads files
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
