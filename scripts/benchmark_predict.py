"""`sft-hf predict` against `transformers.pipeline`, each timed as a user waits for it: from the command to its end.

Each is a process of its own that reads the same file of texts and writes a file of answers. Start-up (imports, loading
the model, its first forward pass) is what the same command takes for one text; the rest is speed without start-up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PLAIN = Path(__file__).with_name("plain_pipeline.py")
PRECISIONS = {"ours-predict": "no", "ours-predict-auto": "auto"}
PEERS = (*PRECISIONS, "pipeline")


def write_texts(work: Path, texts: list[str], column: str) -> None:
    """Write what the peers read: all texts, and the first alone."""
    lines = [json.dumps({column: text}) + "\n" for text in texts]
    (work / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "one.jsonl").write_text(lines[0], encoding="utf-8")


def measure(peer: str, work: Path, rows: int) -> dict[str, Any]:
    """Time a peer on one text and on all, and count the answers that are those of `ours-predict`, which came before.

    The model's head is untrained, so that many answers are nearly tied: a trained model's change less.
    """
    start_up, _ = timed(command(peer, work, "one.jsonl"), work)
    seconds, memory = timed(command(peer, work, "texts.jsonl"), work)
    answers, compared = answers_of(peer, work), answers_of("ours-predict", work)
    if len(answers) != rows:
        sys.exit(f"{peer}: {len(answers)} answers to {rows} texts")
    same = sum(a == b for a, b in zip(answers, compared, strict=True)) / rows
    return {
        "examples_per_second": rows / seconds,
        "without_start_up": (rows - 1) / (seconds - start_up),
        "start_up_seconds": start_up,
        "seconds": seconds,
        "peak_memory_bytes": memory,
        "metrics": {} if peer == "ours-predict" else {"same answers, untrained head": same},
    }


def command(peer: str, work: Path, texts: str) -> list[str]:
    """Return the command line of a peer; its answers to `texts.jsonl` are kept for comparison."""
    output = str(work / (f"answers-{peer}.jsonl" if texts == "texts.jsonl" else "answer.jsonl"))
    if peer in PRECISIONS:
        arguments = [str(work), str(work / texts), "--output", output, "--mixed-precision", PRECISIONS[peer]]
        return [sys.executable, "-m", "sft_hf", "predict", *arguments]
    column = json.loads((work / "about.json").read_text(encoding="utf-8"))["columns"]["text_column"]
    return [sys.executable, str(PLAIN), str(work / "model"), str(work / texts), column, output]


def timed(arguments: list[str], work: Path) -> tuple[float, int]:
    """Run a command; return its seconds and its peak memory in bytes. Ends this program if it fails."""
    said = work / "said.txt"
    with said.open("w", encoding="utf-8") as file:
        started = time.perf_counter()
        run = subprocess.Popen(arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file)
        _, status, usage = os.wait4(run.pid, 0)  # of this process alone, not of all that came before
        seconds = time.perf_counter() - started
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{said.read_text(encoding='utf-8')[-3000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answers_of(peer: str, work: Path) -> list[str]:
    """Return the labels that a peer has written."""
    path = work / f"answers-{peer}.jsonl"
    return [json.loads(line)["prediction"] for line in path.read_text(encoding="utf-8").splitlines()]
