"""The runs into which `reliability.py` injects faults: sft-hf and a plain Trainer script on a tiny model.

Each run is a separate process, forked from one that has imported everything, so that it takes a second.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import runpy
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, KEEP = 22, 2
POISON = "zinc"  # a word whose embedding is so large that the loss of its row is not a number
WORDS = {
    "sport": "goal match team coach league",
    "money": "bank rate dollar market share",
    "food": "bread soup cook salt",
}
PLAIN_TRAINER = str(Path(__file__).with_name("plain_trainer.py"))


@dataclass
class Process:
    """A forked run."""

    pid: int
    output: Path
    code: int | None = None

    def wait(self) -> int:
        """Return its exit code."""
        while not self.ended():
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def send(self, number: int) -> None:
        """Send a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def spawn(action: Callable[[], Any], output: Path, **environment: str) -> Process:
    """Run a function in a child of this process, which has imported everything and computed nothing."""
    pid = os.fork()
    if pid:
        return Process(pid, output)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    code = 1
    try:
        code = action() or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Tool:
    """Common interface of both sides: how to start a run, and where its outputs and checkpoints are."""

    name: str
    prefix: str
    saving: str

    def __init__(self, work: Path, tiny: Path) -> None:
        self.work, self.tiny, self.count = work / self.name.replace(" ", "-"), tiny, 0
        self.work.mkdir()

    def action(self, folder: Path, data: Path, steps: int, keep: int, rate: float) -> Callable[[], Any]:
        """Return the function that a process of this side runs."""
        raise NotImplementedError

    def folder(self) -> Path:
        """Return the path of a new run folder."""
        self.count += 1
        return self.work / f"run{self.count}"

    def start(
        self, folder: Path, data: str = "data", steps: int = STEPS, keep: int = KEEP, rate: float = 1e-2, **env: str
    ) -> Process:
        """Start a run, or resume the one in the folder."""
        return spawn(self.action(folder, self.tiny / data, steps, keep, rate), folder.with_suffix(".txt"), **env)

    def weights(self, folder: Path) -> str | None:
        """Return the SHA-256 of the final weights."""
        file = folder / "model" / "model.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None

    def checkpoints(self, folder: Path) -> Path:
        """Return the folder with the checkpoints."""
        return folder

    def newest(self, folder: Path) -> Path:
        """Return the newest checkpoint."""
        found = [path for path in self.checkpoints(folder).glob(f"{self.prefix}*") if path.is_dir()]
        return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))

    def evaluation_loss(self, folder: Path) -> float:
        """Return the loss on validation at the end."""
        raise NotImplementedError


class SftHf(Tool):
    """This project."""

    name, prefix, saving = "sft-hf", "step-", ".step-"

    def action(self, folder: Path, data: Path, steps: int, keep: int, rate: float) -> Callable[[], Any]:
        """See `Tool.action`."""
        recipe = folder.with_suffix(".yaml")
        recipe.write_text(
            f"task: {{name: text_classification, max_length: 32}}\nmodel: {{name: {self.tiny / 'checkpoint'}}}\n"
            f"data: {{name: {data}, test_fraction: 0}}\n"
            f"train: {{max_steps: {steps}, per_device_train_batch_size: 8, mixed_precision: 'no', logging_steps: 3}}\n"
            f"optim: {{learning_rate: {rate}}}\neval: {{eval_steps: 1000, per_device_eval_batch_size: 4}}\n"
            f"checkpoint: {{save_steps: 4, save_total_limit: {keep}}}\n"
        )
        more = ["--resume"] if (folder / "recipe.yaml").is_file() else []

        def run() -> int:
            from sft_hf.cli import run

            return run(["finetune", str(recipe), "--output-dir", str(folder), *more])

        return run

    def checkpoints(self, folder: Path) -> Path:
        """See `Tool.checkpoints`."""
        return folder / "checkpoints"

    def evaluation_loss(self, folder: Path) -> float:
        """See `Tool.evaluation_loss`."""
        return float(json.loads((folder / "metrics.json").read_text())["validation"]["loss"])


class PlainTrainer(Tool):
    """scripts/plain_trainer.py."""

    name, prefix, saving = "plain Trainer", "checkpoint-", "checkpoint-"

    def action(self, folder: Path, data: Path, steps: int, keep: int, rate: float) -> Callable[[], Any]:
        """See `Tool.action`."""
        arguments = [str(self.tiny / "checkpoint"), str(data), str(folder), str(steps), str(keep), str(rate)]

        def run() -> None:
            sys.argv = [PLAIN_TRAINER, *arguments]
            runpy.run_path(PLAIN_TRAINER, run_name="__main__")

        return run

    def evaluation_loss(self, folder: Path) -> float:
        """See `Tool.evaluation_loss`."""
        return float(json.loads((folder / "eval_results.json").read_text())["eval_loss"])


# --- the tiny model and its data ---------------------------------------------------------------------------------


def make_tiny(folder: Path) -> None:
    """Write a two-layer BERT that knows a few words, and rows whose words determine their topic."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    topics = {name: words.split() for name, words in WORDS.items()}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", POISON, "the", "of", "and", "in"]
    words += [word for topic in topics.values() for word in topic]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(folder / "checkpoint")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.1, **sizes))
    model.embeddings.word_embeddings.weight.data[words.index(POISON)] = 1e38
    model.save_pretrained(folder / "checkpoint")
    generator = random.Random(0)
    for name in ("data", "poisoned"):
        (folder / name).mkdir()
        for split, count in (("train", 90), ("validation", 30)):
            with open(folder / name / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                for row in range(count):
                    topic = list(topics)[row % 3]
                    text = [generator.choice([*topics[topic], "the", "of", "and", "in"]) for _ in range(3 + row % 17)]
                    poison = [POISON] if name == "poisoned" and split == "train" and row == 40 else []
                    writer.writerow([" ".join([topics[topic][0], *text, *poison]), topic])
