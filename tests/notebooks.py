"""Notebooks without Jupyter: their cells as a script, run in a process of its own, and what each of them gives.

python tests/notebooks.py docs/notebook.ipynb    runs it, and stores the outputs in it
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = "/home/me/notebook"  # what the folder that the notebook ran in is called in it

PRELUDE = """
import contextlib, io, json, pathlib

_outputs = []

def _show(value):
    if value is None:
        return
    data = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_()
    _outputs[-1]["result"] = data
"""
CELL = """
_outputs.append({})
with contextlib.redirect_stdout(io.StringIO()) as _out, contextlib.redirect_stderr(io.StringIO()) as _err:
"""
AFTER = """
_outputs[-1]["stdout"] = _out.getvalue()
_outputs[-1]["stderr"] = _err.getvalue()
pathlib.Path("outputs.json").write_text(json.dumps(_outputs))
"""


def code_cells(notebook: dict[str, Any]) -> list[str]:
    """The source of the cells that hold code."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def script_of(notebook: dict[str, Any]) -> str:
    """A script that runs the cells in order, and writes what each of them gives into outputs.json."""
    parts = [PRELUDE]
    for source in code_cells(notebook):
        body = ast.parse(source).body
        if body and isinstance(body[-1], ast.Expr):  # whose value a notebook shows
            body[-1] = ast.parse(f"_show({ast.unparse(body[-1])})").body[0]
        lines = "\n".join(ast.unparse(statement) for statement in body).splitlines()
        parts += [CELL, *(f"    {line}\n" for line in lines), AFTER]
    return "".join(parts)


def run(notebook: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What each cell of code gives: its stdout, stderr and the value of its last line, if that is one."""
    (folder / "cells.py").write_text(script_of(notebook))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = (folder / "outputs.json").read_text().replace(str(folder.resolve()), FOLDER)
    return json.loads(told)


def stored(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs that the notebook holds, as `run` gives them."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            outputs = {"stdout": "", "stderr": ""}
            for output in cell["outputs"]:
                if output["output_type"] == "stream":
                    outputs[output["name"]] = "".join(output["text"])
                else:
                    outputs["result"] = {kind: "".join(text) for kind, text in output["data"].items()}
            found.append(outputs)
    return found


def facts(output: dict[str, Any]) -> dict[str, Any]:
    """What is the same on every machine: all but numbers, and the lines of the log."""
    texts = {"stdout": output["stdout"], **output.get("result", {})}
    return {name: re.sub(r"\s*-?\d[\d.]*(e-?\d+)?", "#", text) for name, text in texts.items()}


def store(path: Path) -> None:
    """Run a notebook, and put the outputs in it."""
    notebook = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        outputs = run(notebook, Path(folder))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, output) in enumerate(zip(cells, outputs, strict=True), start=1):
        cell["execution_count"] = number
        cell["outputs"] = [
            {"output_type": "stream", "name": name, "text": output[name].splitlines(keepends=True)}
            for name in ("stdout", "stderr")
            if output[name]
        ]
        if "result" in output:
            data = {kind: text.splitlines(keepends=True) for kind, text in output["result"].items()}
            result = {"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}}
            cell["outputs"].append(result)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    store(Path(sys.argv[1]))
