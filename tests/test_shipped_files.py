"""Dockerfile and constraints: what they name is there, and nothing of one machine is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_constraints_pin_every_dependency_and_no_cuda():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    project = (ROOT / "pyproject.toml").read_text()
    section = project[project.index("dependencies = [") : project.index("test = [")]
    wanted = re.findall(r'^    "([\w-]+)>=', section, flags=re.MULTILINE)
    assert len(wanted) > 20
    missing = {name.lower() for name in wanted} - set(pins) - {"pip"}
    assert not missing
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in pins)
    assert "+" not in "".join(pins.values())  # a local version would fit the wheels of one index alone


def instructions():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_dockerfile_copies_what_is_there_and_runs_as_nobody_special():
    found = instructions()
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "VOLUME", "USER", "ENTRYPOINT", "CMD"}
    assert found[0][0] == "FROM" and {name for name, _ in found} <= known
    for name, arguments in found:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in arguments.split()[:-1])
    user = [arguments for name, arguments in found if name == "USER"]
    assert user and user[-1] not in ("root", "0")
    variables = " ".join(arguments for name, arguments in found if name == "ENV")
    assert "HF_HOME=/cache" in variables and "SFT_HF_CACHE=/cache" in variables


def test_no_index_is_named():
    for name in ("Dockerfile", "constraints.txt", "docs/installation.md"):
        assert not re.search(r"https?://", (ROOT / name).read_text()), name


def test_the_page_on_predictions_names_every_field():
    from sft_hf.data.new_inputs.inputs import Input

    page = (ROOT / "docs" / "predictions.md").read_text()
    described = Input({}, "a", 0, "t", "i").described(0)
    assert all(f"`{name}`" in page for name in (*described, "prediction", "confidence", "probabilities", "error"))
