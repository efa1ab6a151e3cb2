"""Data sets and checkpoints laid out as the Hub's are, and the process that runs recipes on them one after another."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = ["one two", "three four five", "six one", "two three four", "five six", "one three five", "two four", "six two"]

DRIVER = """
import sys
from sft_hf.cli import run

for name in sys.argv[2:]:
    code = run(["finetune", name, *sys.argv[1].split(), "--output-dir", name])
    if code:
        sys.exit(f"{name}: exit code {code}")
"""


def card(config: str, paths: dict[str, str]) -> str:
    files = "\n".join(f"  - split: {split}\n    path: {path}" for split, path in paths.items())
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}\n---\n# A tiny set\n"


def parquet(columns: dict[str, Any], features: Any) -> bytes:
    buffer = io.BytesIO()
    # Not by way of `Dataset`, which wants torchcodec for a column of recordings.
    pq.write_table(pa.Table.from_pydict(columns, schema=features.arrow_schema), buffer)
    return buffer.getvalue()


def pictures(make_image: Any, count: int, seed: int, names: list[str], label_column: str) -> bytes:
    """Pictures of three classes, with the bytes of their files."""
    from datasets import ClassLabel, Features, Image, Value

    colours = ["blue", "green", "red"]
    images = []
    for index in range(count):
        buffer = io.BytesIO()
        make_image(colours[index % 3], seed + index).save(buffer, format="JPEG")
        images.append({"bytes": buffer.getvalue(), "path": f"{names[index % 3]}.{index}.jpg"})
    columns = {
        "image_file_path": [f"/home/somebody/{image['path']}" for image in images],
        "image": images,
        label_column: [index % 3 for index in range(count)],
    }
    features = {"image_file_path": Value("string"), "image": Image(), label_column: ClassLabel(names=names)}
    return parquet(columns, Features(features))


def recordings(clip: Any, text_column: str, write: Any, rate: int, suffix: str) -> bytes:
    """Eight recordings at the set's own rate and in its own format."""
    import soundfile
    from datasets import Audio, Features, Value

    clips = []
    for index, text in enumerate(TEXTS):
        buffer = io.BytesIO()
        soundfile.write(buffer, clip(text, index, rate), rate, format=suffix)
        clips.append({"bytes": buffer.getvalue(), "path": f"clip_{index}.{suffix.lower()}"})
    columns = {"client_id": ["x"] * len(TEXTS), "audio": clips, text_column: [write(text) for text in TEXTS]}
    features = {"client_id": Value("string"), "audio": Audio(sampling_rate=rate), text_column: Value("string")}
    return parquet(columns, Features(features))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
