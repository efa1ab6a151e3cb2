"""Shared code of the benchmarks: the recipe, the clock, peak FLOP/s, and the format of results."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sft_hf.core.recipe.recipe import Recipe, load_recipe
from sft_hf.engine import process
from sft_hf.jobs.job import TrainingJob

RECIPES = {"text": "text", "image": "image", "speech": "speech", "predict": "text"}
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Data types of matrix products, by the names of `train.mixed_precision`."""


class Clock:
    """Records when each update ended, and how many rows it had."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.rows: list[int] = []

    def tick(self, rows: int) -> None:
        """Record the end of an update."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.rows.append(rows)

    def second_half(self) -> tuple[int, float]:
        """Return rows and seconds of the second of two epochs."""
        first = len(self.ends) // 2
        return sum(self.rows[first:]), self.ends[-1] - self.ends[first - 1]

    def whole(self) -> tuple[int, float]:
        """Return rows and seconds since the end of the first update."""
        return sum(self.rows[1:]), self.ends[-1] - self.ends[0]


def recipe_of(settings: SimpleNamespace) -> Recipe:
    """Return the recipe that all peers use."""
    changes = [*settings.set, f"output_dir={settings.work}/run", "eval.baseline=none"]
    if settings.epochs:
        changes.append(f"train.num_train_epochs={settings.epochs}")
    elif settings.scenario != "predict":
        changes += [f"data.max_train_samples={settings.rows}", "train.num_train_epochs=2"]
        changes += ["data.max_validation_samples=8", "data.max_test_samples=8", "eval.eval_steps=100000"]
        changes.append("checkpoint.save_steps=100000")  # the peers save nothing between the two epochs
    if settings.batch_size:
        changes.append(f"train.per_device_train_batch_size={settings.batch_size}")
    if (Path(settings.work) / "random").is_dir():
        changes.append(f"model={{name: {settings.work}/random}}")
        if settings.scenario == "image":
            changes.append("task.crop_pct=null")  # ViT's processor has no such setting
    return load_recipe(settings.recipe or RECIPES[settings.scenario], changes)


def prepared_run(settings: SimpleNamespace) -> Any:
    """Return a prepared run of sft-hf, with model and rows, before its first step."""
    run = TrainingJob(recipe_of(settings))
    run.prepare()
    return run


def matrix_peaks(device: torch.device) -> dict[str, float]:
    """Return the FLOP/s of matrix products in each precision of `PRECISIONS`; on CPUs without fp16."""
    return {
        name: _matrix_peak(device, dtype)
        for name, dtype in PRECISIONS.items()
        if (device.type, name) != ("cpu", "fp16")
    }


def _matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the best FLOP/s of square matrix products, measured for about `seconds`, at least twice."""
    best, began = 0.0, time.perf_counter()
    sizes = (1024, 2048) if device.type == "cpu" else (4096, 8192)
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for number in range(10):
            clock = Clock()
            clock.tick(0)
            a @ b
            clock.tick(0)
            best = max(best, 2 * size**3 / (clock.ends[1] - clock.ends[0]))
            if number and time.perf_counter() - began > seconds:
                break
    return best


def finding(
    clock: Clock, settings: SimpleNamespace, precision: str, metrics: dict[str, float], curve: list[list[float]]
) -> dict[str, Any]:
    """Return the results of a measurement; `precision` is a key of `PRECISIONS`."""
    rows, seconds = clock.whole() if settings.epochs else clock.second_half()
    return {
        "examples_per_second": rows / seconds,
        "seconds": seconds,
        "updates": len(clock.ends),
        "precision": precision,
        "peak_memory_bytes": process.peak_memory_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "metrics": metrics,
        "curve": curve,
    }
