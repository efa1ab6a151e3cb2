"""`sft-hf` in processes that can be killed, forked from one that has imported everything: a second each, not six.

Run as a script, this is the process that forks; `Commands` is what tests talk to.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HANGS_AFTER = 120  # seconds after which a command is taken to hang, and ends with its stack on standard error


class Command:
    """A running command."""

    def __init__(self, commands: Commands, pid: int, output: Path) -> None:
        self.commands, self.pid, self.output = commands, pid, output
        self.code: int | None = None

    def send(self, number: int) -> None:
        """Send a signal; nothing if the process has ended."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send(signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit code; -9 after SIGKILL."""
        if self.code is None:
            self.code = self.commands.ask({"wait": self.pid})
        return self.code

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            self.code = self.commands.ask({"poll": self.pid})
        return self.code is not None

    def said(self) -> str:
        """Standard output and error."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Any) -> None:
        """Wait until `condition()` is true, or the process has ended."""
        while not condition() and not self.ended():
            time.sleep(0.002)


class Commands:
    """Starts commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_MODULES_CACHE": str(folder / "modules")},
        )
        assert self.server.stdout is not None and self.server.stdout.readline() == "ready\n"

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request to the forking process."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, *arguments: str, **environment: str) -> Command:
        """Start `sft-hf ARGUMENTS` with more variables in its environment."""
        self.count += 1
        output = self.folder / f"{self.count:05}.txt"
        output.touch()
        pid = self.ask({"arguments": arguments, "environment": environment, "output": str(output)})
        return Command(self, pid, output)

    def start_ranks(self, count: int, *arguments: str, rank_0: dict[str, str] | None = None) -> list[Command]:
        """Start a command on several ranks, as torchrun would; `rank_0` are variables of that rank alone."""
        if count == 1:
            return [self.start(*arguments, **(rank_0 or {}))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        common["LOCAL_WORLD_SIZE"] = str(count)
        ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        ranks[0].update(rank_0 or {})
        return [self.start(*arguments, **variables) for variables in ranks]

    def run(self, *arguments: str, **environment: str) -> Command:
        """Start a command and wait for its end."""
        command = self.start(*arguments, **environment)
        command.wait()
        return command

    def close(self) -> None:
        """End the forking process."""
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def fingerprint(run: Path) -> dict[str, Any]:
    """What two runs that are one have in common: weights, predictions, outputs, metrics and log but for the costs."""
    metrics = json.loads((run / "metrics.json").read_text())
    train = {
        key: metrics["train"][key] for key in ("num_steps", "num_epochs", "final_loss", "best_step", "num_examples")
    }
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "weights": hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "predictions": hashlib.sha256((run / "predictions.jsonl").read_bytes()).hexdigest(),
        "outputs": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((run / "outputs").iterdir())
        },
        "metrics": {
            **{key: metrics.get(key) for key in ("test", "validation", "model", "data", "seed")},
            "train": train,
        },
        "log": [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines],
        "left": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }


def _child(request: dict[str, Any]) -> None:
    import faulthandler

    descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    from sft_hf.cli import run

    code = run(list(request["arguments"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    import transformers.models.bert.modeling_bert
    import transformers.models.bert.tokenization_bert  # noqa: F401

    import sft_hf.jobs.inference
    import sft_hf.tasks.text.task  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "arguments" in request:
            answer = os.fork()
            if answer == 0:
                sys.stdin.close()
                try:
                    _child(request)
                finally:
                    os._exit(99)
        else:
            pid, status = os.waitpid(request.get("wait") or request["poll"], 0 if "wait" in request else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
