"""Tiny random models and data made on the spot: no network, no GPU, no real checkpoint."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would need the Hub fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TOPICS = {
    "sport": "goal match team coach league player score win".split(),
    "money": "bank rate dollar market share profit loss stock".split(),
    "food": "bread cheese soup cook taste salt dinner apple".split(),
}
FILLER = "the a of and to in said was on for with at by".split()


def make_rows(count: int, seed: int = 0, topics: tuple[str, ...] = ("sport", "money", "food")) -> list[dict[str, str]]:
    """Sentences whose words tell the topic."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        topic = topics[index % len(topics)]
        length = int(generator.integers(3, 20))
        words = [str(generator.choice(TOPICS[topic] if generator.random() < 0.5 else FILLER)) for _ in range(length)]
        rows.append({"text": " ".join([TOPICS[topic][index % 8], *words]), "label": topic})
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as CSV, columns from the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and 32 dimensions, without a classifier's head, that knows the words above."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoint")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *FILLER,
        *(word for topic in TOPICS.values() for word in topic),
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.1,  # at this size the usual 0.02 takes many steps to get anywhere
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv with 90 rows and test.csv with 30; no validation."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "train.csv", make_rows(90, seed=1))
    write_csv(folder / "test.csv", make_rows(30, seed=2))
    return folder


@pytest.fixture
def make_recipe(checkpoint: Path, data_folder: Path, tmp_path: Path) -> Any:
    """Return a function that makes a recipe on the tiny model and data, with keys changed by dotted path."""
    from sft_hf.recipe import Recipe, apply_overrides, validate_recipe

    def make(**changes: Any) -> Recipe:
        data: dict[str, Any] = {
            "task": {"name": "text_classification", "max_length": 32},
            "model": {"name": str(checkpoint)},
            "data": {"name": str(data_folder)},
            "train": {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 8,
                "mixed_precision": "no",
                "num_threads": 1,
            },
            "optim": {"learning_rate": 1e-2},
            "output_dir": str(tmp_path / "run"),
        }
        import json

        overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
        return validate_recipe(apply_overrides(data, overrides))

    return make
