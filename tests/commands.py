"""`sft-hf` and Python programs in processes that can be killed, forked from one that has imported everything.

A second each, not ten. Run as a script, this is the process that forks; `Commands` is what tests talk to, and
`shared()` the one of all tests of a process.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

HANGS_AFTER = 120  # seconds after which a command is taken to hang, and ends with its stack on standard error
# What a run imports only when it gets there: two seconds more for each command, if not done once for all.
IMPORTED = (
    "datasets",
    "evaluate",
    "peft",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.pipelines",
    "sft_hf.cli.training",
    "sft_hf.cli.using",
    "sft_hf.jobs.finetune",
    "sft_hf.jobs.inference",
    "sft_hf.publishing.report.run_report",
    "sft_hf.tasks.scoring.classification",
    "sft_hf.tasks.text.task",
)


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
        return self._start({"arguments": arguments, "environment": environment})

    def _start(self, request: dict[str, Any]) -> Command:
        self.count += 1
        output = self.folder / f"{self.count:05}.txt"
        output.touch()
        return Command(self, self.ask({**request, "output": str(output)}), output)

    def start_ranks(self, count: int, *arguments: str, rank_0: dict[str, str] | None = None) -> list[Command]:
        """Start a command on several ranks, as torchrun would; `rank_0` are variables of that rank alone."""
        if count == 1:
            return [self.start(*arguments, **(rank_0 or {}))]
        ranks = variables_of_ranks(count)
        ranks[0].update(rank_0 or {})
        return [self.start(*arguments, **variables) for variables in ranks]

    def run(self, *arguments: str, **environment: str) -> Command:
        """Start a command and wait for its end."""
        command = self.start(*arguments, **environment)
        command.wait()
        return command

    def python(
        self, *arguments: str | Path, ranks: int = 1, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Do what `python ARGUMENTS` does (a script, -c or -m) in this process' environment and more, and wait.

        On several ranks the result has the sum of their codes, and what they said, one after the other.
        """
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
        request = {"program": [str(argument) for argument in arguments], "cwd": str(cwd or Path.cwd())}
        started = []
        for more in variables_of_ranks(ranks) if ranks > 1 else [{}]:
            errors = self.folder / f"{self.count + 1:05}.err"
            started.append(
                (self._start({**request, "environment": {**variables, **more}, "errors": str(errors)}), errors)
            )
        code = sum(command.wait() for command, _ in started)
        said = "".join(command.said() for command, _ in started)
        complained = "".join(errors.read_text(encoding="utf-8", errors="replace") for _, errors in started)
        return subprocess.CompletedProcess(request["program"], code, said, complained)

    def close(self) -> None:
        """End the forking process."""
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


@cache
def shared() -> Commands:
    """The one for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="commands-"))
    commands = Commands(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(commands.close)
    return commands


def variables_of_ranks(count: int) -> list[dict[str, str]]:
    """What torchrun would set for each of `count` ranks on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common["LOCAL_WORLD_SIZE"] = str(count)
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


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


def _child(request: dict[str, Any]) -> int:
    import faulthandler

    for name, descriptors in (("output", (1, 2)), ("errors", (2,))):
        if name in request:
            descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for standard in descriptors:
                os.dup2(descriptor, standard)
    if "program" in request:
        os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    if "program" in request:
        os.chdir(request["cwd"])
        return _python(*request["program"])
    from sft_hf.cli import run

    return run(list(request["arguments"]))


def _python(first: str, *arguments: str) -> int:
    """What `python FIRST ARGUMENTS` does; return its exit code."""
    sys.path[0] = "" if first in ("-c", "-m") else str(Path(first).absolute().parent)
    try:
        if first == "-c":
            sys.argv = ["-c", *arguments[1:]]
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = list(arguments)
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *arguments]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "output" in request:
            answer = os.fork()
            if answer == 0:
                sys.stdin.close()
                code = 99
                try:
                    code = _child(request)
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
        else:
            pid, status = os.waitpid(request.get("wait") or request["poll"], 0 if "wait" in request else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
