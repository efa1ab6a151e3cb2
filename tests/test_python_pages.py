"""The guide to the Python API and the notebook: what they show runs, and gives what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import notebooks
import pytest

from sft_hf.core.recipe.short_names import SHORT_NAMES

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))

PRELUDE = """
import sys
import pandas as pd
from tiny_data import COLOURS, RATE, make_image, make_rows, make_speech, spoken_texts

df = pd.DataFrame(make_rows(60)).rename(columns={"text": "review", "label": "stars"})
df[["review"]].head(4).to_csv("new.csv", index=False)
pictures = [(make_image(kind, number), kind) for number in range(6) for kind in COLOURS]
clips = [{"clip": (make_speech(text), RATE), "said": text} for text in spoken_texts(6)]
clips += clips
"""


@pytest.fixture
def workspace(tmp_path, checkpoint, image_checkpoint, whisper_checkpoint):
    """A folder in which the models that the guide names are tiny ones, and so is the recipe."""
    models = {
        "sentence-transformers/all-MiniLM-L6-v2": checkpoint,
        "google/vit-base-patch16-224": image_checkpoint,
        "openai/whisper-tiny.en": whisper_checkpoint,
    }
    for name, folder in models.items():
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "text.yaml").write_text(
        f"task: {{name: text_classification, max_length: 32}}\nmodel: {{name: {checkpoint}}}\ndata: {{name: own.csv}}\n"
    )
    return tmp_path


@pytest.mark.long
def test_the_guide_runs(workspace):
    """The functions themselves: tests/jobs/test_python_api.py; the first five lines: test_readme.py."""

    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
    script = workspace / "guide.py"
    end = "\nassert answers[0]['prediction'] and 'error' in answers[1] and 'error' in answers[2], answers\n"
    script.write_text("\n".join([PRELUDE, *blocks, end]))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=workspace, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert said[-1].startswith("finetune() has no setting 'epoch'; did you mean epochs?")
    assert [line.split()[0] for line in said[:4]] == ["0", "1", "2", "3"]
    assert (workspace / "runs" / "text").is_dir() and (workspace / "runs" / "text-2").is_dir()


def test_the_guide_has_every_short_name():
    shown = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)`", GUIDE, flags=re.MULTILINE))
    assert shown == SHORT_NAMES


@pytest.mark.long
def test_the_notebook_gives_what_it_shows(tmp_path):
    """The functions themselves: tests/jobs/test_python_api.py and tests/engine/test_callbacks.py."""

    outputs = notebooks.run(NOTEBOOK, tmp_path)
    assert [notebooks.facts(output) for output in outputs] == [
        notebooks.facts(output) for output in notebooks.stored(NOTEBOOK)
    ]
    told = "".join(output["stdout"] for output in outputs)
    assert "accuracy above 0.9: True" in told and "StopWhenGood" in told


def test_the_notebook_is_whole():
    assert NOTEBOOK["nbformat"] == 4
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "/root/" not in json.dumps(NOTEBOOK) and "/tmp/" not in json.dumps(NOTEBOOK)
