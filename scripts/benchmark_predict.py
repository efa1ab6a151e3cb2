"""Benchmark of `sft-hf predict` against `transformers.pipeline`, each timed from the start of the command to its end.

The recipe is trained first; its test split's texts are the inputs. Each peer is a separate process that reads the same
file of texts and writes a file of answers. Start-up (imports, loading the model, the first forward pass) is the time
of the same command for a single text; the rest is the speed without start-up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PLAIN = Path(__file__).with_name("plain_pipeline.py")
OPTIONS = {"ours-predict": (), "ours-predict-float32": ("--mixed-precision", "no")}
PEERS = (*OPTIONS, "pipeline")


def train(settings: SimpleNamespace) -> dict[str, Any]:
    """Train the recipe, and write the inputs: texts of the test split, repeated if too few, and a single text."""
    from benchmark_common import recipe_of

    from sft_hf.engine import process
    from sft_hf.jobs.finetune import finetune
    from sft_hf.jobs.inference import open_trained
    from sft_hf.jobs.inputs import load_data

    result = finetune(recipe_of(settings))
    recipe, task, _ = open_trained(result.output_dir)
    texts = load_data(recipe, task, None).by_role["test"][recipe.data.text_column]
    lines = [json.dumps({recipe.data.text_column: texts[index % len(texts)]}) + "\n" for index in range(settings.rows)]
    work = Path(settings.work)
    (work / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "one.jsonl").write_text(lines[0], encoding="utf-8")
    (work / "column.txt").write_text(recipe.data.text_column)
    accelerator = process.build_accelerator("no", recipe.train.num_threads)
    words = sorted(len(text.split()) for text in texts[: settings.rows])
    return {
        "description": f"{recipe.model.name.rsplit('/', 1)[-1]}, accuracy {result.metrics['test']['accuracy']:.4f}, "
        f"{len(set(lines))} different texts of {words[0]} to {words[-1]} words (median {words[len(words) // 2]})",
        "device": process.device_name(accelerator.device),
        "peaks": {},
        "environment": process.environment(accelerator),
    }


def measure(peer: str, work: Path, rows: int) -> dict[str, Any]:
    """Time a peer on one text and on all, and compare its answers with the pipeline's, if available."""
    start_up, _ = timed(command(peer, work, "one.jsonl"), work)
    seconds, memory = timed(command(peer, work, "texts.jsonl"), work)
    answers = answers_of(peer, work)
    if len(answers) != rows:
        sys.exit(f"{peer}: {len(answers)} answers to {rows} texts")
    return {
        "examples_per_second": rows / seconds,
        "without_start_up": (rows - 1) / (seconds - start_up),
        "start_up_seconds": start_up,
        "seconds": seconds,
        "peak_memory_bytes": memory,
        "metrics": agreement(answers, answers_of("pipeline", work)) if peer != "pipeline" else {},
    }


def agreement(answers: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, float]:
    """Compare answers: the fraction of equal ones, and the largest difference in confidence."""
    if not others:
        return {}
    pairs = list(zip(answers, others, strict=True))
    return {
        "same answers as pipeline": sum(a["prediction"] == b["prediction"] for a, b in pairs) / len(pairs),
        "confidence off by up to": max(abs(a["confidence"] - b["confidence"]) for a, b in pairs),
    }


def command(peer: str, work: Path, texts: str) -> list[str]:
    """Return the command line of a peer; its answers to `texts.jsonl` are kept for comparison."""
    output = str(work / (f"answers-{peer}.jsonl" if texts == "texts.jsonl" else "answer.jsonl"))
    if peer in OPTIONS:
        arguments = [str(work / "run"), str(work / texts), "--output", output, *OPTIONS[peer]]
        return [sys.executable, "-m", "sft_hf", "predict", *arguments]
    column = (work / "column.txt").read_text()
    return [sys.executable, str(PLAIN), str(work / "run" / "model"), str(work / texts), column, output]


def timed(arguments: list[str], work: Path) -> tuple[float, int]:
    """Run a command; return its seconds and its peak memory in bytes. Ends this program if it fails."""
    said = work / "said.txt"
    with said.open("w", encoding="utf-8") as file:
        started = time.perf_counter()
        run = subprocess.Popen(arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file)
        _, status, usage = os.wait4(run.pid, 0)  # of this process only
        seconds = time.perf_counter() - started
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{said.read_text(encoding='utf-8')[-3000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answers_of(peer: str, work: Path) -> list[dict[str, Any]]:
    """Return the answers of a peer; empty if it has not run yet."""
    path = work / f"answers-{peer}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
