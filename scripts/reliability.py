"""The same faults in sft-hf and in a plain Trainer script: python scripts/reliability.py --kills 20

Nothing is mocked: processes, SIGKILLs, corrupt files, a limit on file sizes, two ranks under gloo. The model is tiny
and created on the fly, so that a run takes a second; both sides train it on the same rows for 22 steps and save every
4.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from reliability_sides import PlainTrainer, Process, SftHf, Tool, make_tiny, spawn


def resumed(tool: Tool, folder: Path, whole: str) -> str:
    """Resume to the end and return the outcome."""
    if tool.start(folder).wait():
        return "could not resume"
    return "same weights" if tool.weights(folder) == whole else "other weights"


def manner(process: Process) -> str:
    """Return how a finished process reported its failure."""
    return "a traceback" if "Traceback (most recent" in process.output.read_text(errors="replace") else "one line"


def counted(outcomes: list[str]) -> str:
    """Return the number of each outcome: `12 same weights, 3 could not resume`."""
    kinds = ("same weights", "other weights", "could not resume")
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds if kind in outcomes)


def kills_at_random(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """SIGKILL at a random moment, then resume."""
    generator = random.Random(1)
    outcomes: list[str] = []
    while len(outcomes) < kills:
        folder = tool.folder()
        process = tool.start(folder)
        time.sleep(generator.uniform(0, seconds))
        process.send(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            outcomes.append(resumed(tool, folder, whole))
    return counted(outcomes)


def kills_in_a_save(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """SIGKILL up to 10 ms after the folder of a checkpoint has appeared, then resume."""
    generator = random.Random(2)
    outcomes: list[str] = []
    while len(outcomes) < kills:
        folder, step = tool.folder(), generator.choice((4, 8, 12, 16, 20))
        process = tool.start(folder)
        known: set[str] = set()
        while not process.ended():
            with suppress(OSError):
                known = {name for name in os.listdir(tool.checkpoints(folder)) if name.startswith(tool.saving)}
            if any(int("".join(filter(str.isdigit, name))) == step for name in known):
                break
        time.sleep(generator.uniform(0, 0.01))
        process.send(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            outcomes.append(resumed(tool, folder, whole))
    return counted(outcomes)


def damages() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield ways to corrupt a file."""
    yield "deleted", lambda path: path.unlink()
    yield "emptied", lambda path: path.write_bytes(b"")
    yield "halved", lambda path: os.truncate(path, path.stat().st_size // 2)
    yield "one byte short", lambda path: os.truncate(path, path.stat().st_size - 1)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    yield "one bit flipped", flip


def damaged_files(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Corrupt each file of the newest of two checkpoints in five ways; then resume."""
    outcomes = []
    died = tool.folder()
    tool.start(died, SFT_HF_FAIL_POINT="step-000022:1").wait()
    if isinstance(tool, PlainTrainer):  # as if it had been killed before its last save
        shutil.rmtree(tool.newest(died))
        shutil.rmtree(died / "model")
        tool.start(tool.folder(), steps=1).wait()
    for file in sorted(path.name for path in tool.newest(died).iterdir()):
        for _, damage in damages():
            folder = tool.folder()
            shutil.copytree(died, folder)
            damage(tool.newest(folder) / file)
            outcomes.append(resumed(tool, folder, whole))
    return f"of {len(outcomes)}: {counted(outcomes)}"


class _Planted:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "executed")


def planted_pickles(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Replace each file of the newest checkpoint by a pickle that runs code; then resume."""
    died, executed, files = tool.folder(), 0, 0
    tool.start(died, SFT_HF_FAIL_POINT="step-000022:1").wait()
    for file in sorted(path.name for path in tool.newest(died).iterdir()):
        folder = tool.folder()
        shutil.copytree(died, folder)
        shutil.rmtree(folder / "model", ignore_errors=True)
        marker = folder / "marker"
        (tool.newest(folder) / file).write_bytes(pickle.dumps(_Planted(marker)))
        tool.start(folder).wait()
        executed += marker.exists()
        files += 1
    return f"executed in {executed} of {files} files"


def nan_row(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Train with one row whose loss is not a number."""
    folder = tool.folder()
    process = tool.start(folder, data="poisoned")
    code = process.wait()
    if tool.weights(folder) is None:
        said = process.output.read_text().strip().splitlines()[-1]
        return f"exit {code}: {said.removeprefix('error: ').split(';')[0]}"
    from safetensors.numpy import load_file

    bad = sum(bool((value != value).any()) for value in load_file(folder / "model" / "model.safetensors").values())
    return f"exit {code}, a model saved in which {bad} weight tensors hold NaN"


def full_disk(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Limit the size of files after the first checkpoint; one checkpoint is kept."""
    folder = tool.folder()
    process = tool.start(folder, steps=400, keep=1)
    while not process.ended():
        with suppress(ValueError, OSError):
            if len(list(tool.newest(folder).iterdir())) >= 3 and not tool.newest(folder).name.endswith("-4"):
                break
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    code = process.wait()
    again = tool.start(folder, steps=400, keep=1)
    code_again = again.wait()
    return f"exit {code}; " + ("resumes" if code_again == 0 else "cannot be resumed")


def asked_to_stop(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Send SIGTERM in the middle of training, and count the lost steps."""
    folder = tool.folder()
    process = tool.start(folder, steps=2000)
    while not process.ended():
        with suppress(ValueError, OSError):
            if int(tool.newest(folder).name.rsplit("-", 1)[1]) >= 100:
                break
    process.send(signal.SIGTERM)
    code = process.wait()
    said = process.output.read_text()
    return f"exit {code}, " + (
        "0 steps lost" if "a checkpoint is saved" in said else "the steps since the last save lost"
    )


def two_runs(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Start a second run in the folder of a running one."""
    folder = tool.folder()
    first = tool.start(folder, steps=2000)
    while not first.ended():
        with suppress(ValueError, OSError):
            if tool.newest(folder):
                break
    second = tool.start(folder, steps=2000)
    time.sleep(seconds)
    outcome = "both write to it"
    if second.ended() and not first.ended():
        outcome = f"refused, exit {second.code} with {manner(second)}"
    for process in (first, second):
        process.send(signal.SIGKILL)
        process.wait()
    return outcome


def two_ranks(tool: Tool, whole: str, seconds: float, kills: int) -> str:
    """Compare the evaluation loss of 30 rows, in batches of 4, on two ranks and on one (without training)."""
    losses = []
    for ranks in (1, 2):
        folder = tool.folder()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environments: list[dict[str, Any]] = [
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)
        ]
        tiny = [
            tool.start(folder, steps=1, rate=1e-30, **environment)
            for environment in (environments if ranks == 2 else [{}])
        ]
        if any(process.wait() for process in tiny):
            return "failed: " + tiny[0].output.read_text()[-300:]
        losses.append(tool.evaluation_loss(folder))
    return f"{abs(losses[1] - losses[0]) / losses[0]:.2%} off"


FAULTS: dict[str, Callable[[Tool, str, float, int], str]] = {
    "SIGKILL at {kills} random moments, resumed": kills_at_random,
    "SIGKILL in {kills} saves, resumed": kills_in_a_save,
    "each file of the newest of two checkpoints deleted, emptied, halved, cut by a byte, a bit flipped": damaged_files,
    "a pickle that runs code, in place of each checkpoint file": planted_pickles,
    "a training row whose loss is NaN": nan_row,
    "disk full during a save, one checkpoint kept": full_disk,
    "SIGTERM": asked_to_stop,
    "a second run started in the same folder": two_runs,
    "evaluation of 30 rows in batches of 4 on two ranks instead of one: loss": two_ranks,
}


def main() -> None:
    """Inject every fault into both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs at random times, and as many inside saves")
    parser.add_argument("--only", help="only the faults whose name contains this")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    for module in ("transformers.models.bert.modeling_bert", "transformers.trainer", "sft_hf.jobs.finetune"):
        importlib.import_module(module)  # once, here, for all forked processes
    importlib.import_module("sft_hf.tasks.text.task")
    work = Path(tempfile.mkdtemp(prefix="reliability-"))
    try:
        tiny = work / "tiny"
        assert spawn(lambda: make_tiny(tiny), work / "tiny.txt").wait() == 0, (work / "tiny.txt").read_text()
        tools = [SftHf(work, tiny), PlainTrainer(work, tiny)]
        wholes = {}
        for tool in tools:
            folder, started = tool.folder(), time.monotonic()
            process = tool.start(folder)
            assert process.wait() == 0, process.output.read_text()
            wholes[tool.name] = (tool.weights(folder), time.monotonic() - started)
        print(f"| fault | {' | '.join(tool.name for tool in tools)} |\n|---|---|---|")
        for title, fault in FAULTS.items():
            if options.only and options.only not in title:
                continue
            cells = [fault(tool, *wholes[tool.name], options.kills) for tool in tools]  # type: ignore[arg-type]
            print(f"| {title.format(kills=options.kills)} | {' | '.join(cells)} |", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
