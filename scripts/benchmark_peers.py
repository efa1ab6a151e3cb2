"""One measurement of scripts/benchmark.py, in a separate process: benchmark_peers.py PEER SETTINGS-AS-JSON

The last line of standard output is the result, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from benchmark_common import Clock, finding, matrix_peaks, prepared_run, recipe_of

import sft_hf.engine.loop
from sft_hf.engine import process
from sft_hf.jobs.finetune import finetune

# --- prepare -----------------------------------------------------------------------------------------------------


def prepare(settings: SimpleNamespace) -> dict[str, Any]:
    """Write the model with its new head, and the rows of each split, for the other peers."""
    if settings.random_weights:
        from benchmark_models import write_random

        write_random(settings.random_weights, Path(settings.work) / "random", recipe_of(settings))
    run = prepared_run(settings)
    work = Path(settings.work)
    run.task.save(run.accelerator.unwrap_model(run.training.model), work / "model")
    for role, split in run.splits.by_role.items():
        split.save_to_disk(str(work / "rows" / role))
    columns = {key.removeprefix("data."): column for key, column in run.task.reader.columns().items()}
    model = run.training.model
    about = {
        "columns": columns,
        "labels": list(run.task.label_map.names) if hasattr(run.task, "label_map") else None,
        "max_length": getattr(run.task, "max_length", None),
        "as_it_came": as_it_came(run),
    }
    peaks = matrix_peaks(run.accelerator.device)
    about["fastest"] = max(peaks, key=peaks.__getitem__)
    (work / "about.json").write_text(json.dumps(about))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "description": f"{settings.random_weights or run.recipe.model.name.rsplit('/', 1)[-1]}, "
        f"{parameters / 1e6:.1f} M weights, batch {run.recipe.train.per_device_train_batch_size}",
        "device": process.device_name(run.accelerator.device),
        "peaks": peaks,
        "environment": process.environment(run.accelerator),
    }


def as_it_came(run: Any) -> dict[str, Any]:
    """Return the original values of the config fields that the recipe overrides, for the peers that keep them."""
    from transformers import AutoConfig

    from sft_hf.models.loading import open_checkpoint

    changed = run.recipe.model.config_overrides
    own = open_checkpoint(AutoConfig, run.source, "config.json") if changed else None
    return {name: getattr(own, name) for name in changed}


# --- ours --------------------------------------------------------------------------------------------------------


def ours(settings: SimpleNamespace) -> dict[str, Any]:
    """Measure `sft-hf finetune` with the recipe unchanged."""
    clock, plain_step = Clock(), sft_hf.engine.loop.train_step

    def timed_step(*arguments: Any) -> Any:
        result = plain_step(*arguments)
        clock.tick(result.rows)
        return result

    sft_hf.engine.loop.train_step = timed_step  # type: ignore[assignment]
    recipe = recipe_of(settings)
    result = finetune(recipe, overwrite=True)
    log = [json.loads(line) for line in (result.output_dir / "log.jsonl").read_text().splitlines()]
    primary = result.metrics["primary_metric"]
    curve = [[line["step"], line[f"eval_{primary}"]] for line in log if f"eval_{primary}" in line]
    metrics = {primary: result.metrics["test"][primary]} if settings.epochs else {}
    precision = result.metrics["environment"]["mixed_precision"]
    return finding(
        clock, settings, precision, metrics, [[clock.ends[step - 1] - clock.ends[0], value] for step, value in curve]
    )


def step_alone(settings: SimpleNamespace) -> dict[str, Any]:
    """Measure the step of sft-hf without its loop: its model with its CPU kernels, on its own prepared batches."""
    from torch.utils.flop_counter import FlopCounterMode

    run = prepared_run(settings)
    task, training, device = run.task, run.training, run.accelerator.device
    epochs = []
    for index in (0, 1):
        examples, plan = training.data.epoch(index)
        rows = [list(window.micro_batches[0][0].rows) for window in plan]
        epochs.append([task.collate([examples.features[row] for row in batch]) for batch in rows])
    model, optimizer, clock = training.model.train(), training.optimizer, Clock()
    counter = FlopCounterMode(display=False)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=run.accelerator.mixed_precision == "bf16")

    def step(batch: dict[str, torch.Tensor], count: Any = nullcontext) -> None:
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with precision, count():
            loss = task.losses(model, batch).sum() / task.item_counts(batch).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.tick(len(next(iter(batch.values()))))

    flops = 0
    for batch in epochs[0]:
        step(batch, lambda: counter)  # resets the previous counts
        flops += counter.get_total_flops()
    for batch in epochs[1]:
        step(batch)
    seen = sum(clock.rows[: len(epochs[0])])
    # The backward pass has twice the FLOPs of the forward pass; counting it overestimates grouped convolutions.
    precision_name = run.accelerator.mixed_precision
    return {**finding(clock, settings, precision_name, {}, []), "flops_per_example": 3 * flops / seen}


def main() -> None:
    """Run the measurement given on the command line."""
    name, settings = sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2]))
    os.environ["HF_HUB_OFFLINE"] = "1"
    kinds = {"prepare": prepare, "ours": ours, "step": step_alone}
    if settings.scenario == "predict":
        from benchmark_predict import train

        kinds = {"prepare": train}
    if name in kinds:
        result = kinds[name](settings)
    else:
        from benchmark_trainers import run_peer

        result = run_peer(name, settings)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
