"""Checkpoints as sentence-transformers ships them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}


def pooling_file(folder: Path, *modes: str, path: str = "1_Pooling") -> None:
    """Write the file that says how token vectors become one vector."""
    (folder / path).mkdir(exist_ok=True)
    values = {"word_embedding_dimension": 16, **dict.fromkeys(MODES.values(), False)}
    (folder / path / "config.json").write_text(json.dumps(values | dict.fromkeys(modes, True)))


def sentence_encoder(checkpoint: Path, folder: Path, mode: str = "mean") -> Path:
    """Copy a checkpoint, and add what says that it is a sentence encoder."""
    shutil.copytree(checkpoint, folder)
    pooling_file(folder, MODES[mode])
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    written = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(written))
    return folder
