"""Repositories like those of a shipped recipe, small: a DistilBERT, and a data set of sentences in Parquet."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

POSITIVE, NEGATIVE = "good fine great lovely".split(), "bad dull poor awful".split()


def checkpoint_files(seed: int) -> dict[str, str | bytes]:
    """A DistilBERT as the real repository has it: for masked words, lower case, two forms of the vocabulary."""
    from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "the", "was", *POSITIVE, *NEGATIVE]
    tokenizer = DistilBertTokenizerFast(vocab={word: index for index, word in enumerate(words)})
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(words), dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=512
    )
    model = DistilBertForMaskedLM(config)
    config.architectures = ["DistilBertForMaskedLM"]
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    return {
        "README.md": "---\nlicense: apache-2.0\n---\n# A tiny DistilBERT\n",
        "config.json": config.to_json_string(),
        "model.safetensors": safetensors.torch.save(tensors, {"format": "pt"}),
        "tokenizer.json": tokenizer.backend_tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({"do_lower_case": True, "model_max_length": 512}),
        "vocab.txt": "\n".join(words) + "\n",
    }


CARD = """---
dataset_info:
  features:
  - name: idx
    dtype: int32
  - name: sentence
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': negative
          '1': positive
  splits:
{splits}
configs:
- config_name: default
  data_files:
{files}
---
# A tiny SST-2
"""


def data_files(train: int, validation: int) -> dict[str, str | bytes]:
    """A data set as the real one is laid out: a split is a Parquet file, the card names the labels, test hides them."""
    sizes = {"train": train, "validation": validation, "test": 8}
    files: dict[str, str | bytes] = {}
    for split, size in sizes.items():
        labels = [index % 2 for index in range(size)]
        words = [(POSITIVE if label else NEGATIVE)[index % 4] for index, label in enumerate(labels)]
        columns = {
            "idx": pa.array(range(size), pa.int32()),
            "sentence": [f"the film was {word}" for word in words],
            "label": pa.array([-1] * size if split == "test" else labels, pa.int64()),
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        files[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    splits = [f"  - name: {split}\n    num_bytes: 1\n    num_examples: {size}" for split, size in sizes.items()]
    patterns = [f"  - split: {split}\n    path: data/{split}-*" for split in sizes]
    files["README.md"] = CARD.format(splits="\n".join(splits), files="\n".join(patterns))
    return files


class WritesAFile:
    """Unpickled, it creates the file it was made with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tensors_of(content: Any) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(content)
