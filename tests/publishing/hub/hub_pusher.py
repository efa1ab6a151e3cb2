"""Pushes in processes that can be killed, against the Hub of tests/hub_server.py.

Run as a script, this is the process that they are forked from: huggingface_hub reads HF_ENDPOINT when it is imported.
There are three commands: `call`, which is `push(...)`, `load`, a stranger with plain Transformers, and `logits`, a
stranger who follows the card of an adapter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import commands
import hub_server


class Pusher(commands.Commands):
    """Starts commands to which a server is the Hub."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder, self.count = folder, 0
        environment = hub_server.client_environment(endpoint, folder / "home")
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self.server.stdout is not None and self.server.stdout.readline() == "ready\n"

    def begin(
        self, run: Path, repo_id: str, token: str, variables: dict[str, str] | None = None, **options: Any
    ) -> Any:
        """Start `push(run, repo_id, **options)` in a process whose environment has a token, and perhaps more."""
        request = {"run": str(run), "repo_id": repo_id, **options}
        return self.start("call", json.dumps(request), HF_TOKEN=token, **(variables or {}))

    def push(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Push, and return the result, and as `said` what was said."""
        done = self.begin(*arguments, **options)
        assert done.wait() == 0, done.said()
        *said, result = done.said().splitlines()
        return {**json.loads(result), "said": "\n".join(said)}

    def refused(self, *arguments: Any, **options: Any) -> str:
        """Push, and return the line that says why it failed."""
        return error_of(self.begin(*arguments, **options))


def error_of(done: Any) -> str:
    """The one line in which a command said that its user can mend something."""
    assert done.wait() == 2, (done.wait(), done.said())
    lines = done.said().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.said()
    assert "Traceback" not in done.said(), done.said()
    return lines[-1]


class NoSleep:
    """`time`, for huggingface_hub's pauses before it tries again."""

    sleep = staticmethod(lambda seconds: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _call(arguments: list[str]) -> int:
    """As the command line does it: one line for what its user can mend."""
    import huggingface_hub

    from sft_hf.core import console
    from sft_hf.core.errors import SftError
    from sft_hf.core.redaction import redact
    from sft_hf.publishing.hub.push import push

    console.set_up()
    huggingface_hub.constants.HF_HUB_DISABLE_XET = "WITH_XET" not in os.environ
    try:
        print(json.dumps(asdict(push(**json.loads(arguments[0])))))
    except SftError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0


def _load(arguments: list[str]) -> int:
    """What the models at these places answer, and a digest of their weights."""
    import hashlib

    import safetensors.torch
    import soundfile
    import torch
    from transformers import AutoModel, pipeline

    torch.set_num_threads(1)
    task, value, *places = arguments
    answers, audio = [], None
    if value.endswith(".wav"):  # a path would be read with ffmpeg
        samples, rate = soundfile.read(value, dtype="float32")
        audio = {"raw": samples, "sampling_rate": rate}
    for place in places:
        model, _, revision = place.partition("@")
        answer = pipeline(task, model=model, revision=revision or None, device="cpu")(dict(audio) if audio else value)
        torch.manual_seed(0)  # of layers that AutoModel has and the model has not
        weights = AutoModel.from_pretrained(model, revision=revision or None).state_dict()
        content = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in weights.items()})
        answers.append([answer, hashlib.sha256(content).hexdigest()])
    print(json.dumps(answers))
    return 0


def _logits(arguments: list[str]) -> int:
    """Logits of a checkpoint, of the adapter that lines of Python put into it, and of the model at a place."""
    import warnings

    import torch
    from transformers import AutoModelForSequenceClassification

    warnings.simplefilter("ignore")  # what PEFT and Transformers warn each other of
    code, place = arguments
    lines = code.rstrip().splitlines()
    inputs = {"input_ids": torch.arange(5, 21).reshape(2, 8)}
    found: dict[str, Any] = {}
    logits = []
    with torch.no_grad():
        exec("\n".join(lines[:-1]), found)
        logits.append(found["base"].eval()(**inputs).logits)
        exec(lines[-1], found)
        logits.append(found["model"](**inputs).logits)
        logits.append(AutoModelForSequenceClassification.from_pretrained(place).eval()(**inputs).logits)
    print(json.dumps([value.tolist() for value in logits]))
    return 0


def _run(arguments: list[str]) -> int:
    try:
        return {"call": _call, "load": _load, "logits": _logits}[arguments[0]](arguments[1:])
    except Exception:
        traceback.print_exc()
        return 1


def _serve() -> None:
    import huggingface_hub.utils._http as http
    import transformers  # noqa: F401

    import sft_hf.cli
    import sft_hf.publishing.hub.push
    import sft_hf.tasks.image.task
    import sft_hf.tasks.speech.task
    import sft_hf.tasks.text.task

    http.time = NoSleep()  # type: ignore[assignment]
    # commands.py runs what `sft_hf.cli.run` is.
    sft_hf.cli.run = _run
    commands._serve()


if __name__ == "__main__":
    os.environ.pop("HF_TOKEN", None)
    _serve()
