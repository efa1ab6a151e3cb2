"""What of a run is published, and what holds a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_hf.core.errors import UserError
from sft_hf.publishing.hub.files import is_publishable, public_adapter_config, public_metrics, refuse_secrets


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
        *("model.safetensors.index.json", "tokenizer.json", "vocab.txt", "merges.txt", "spiece.model"),
        *("recipe.yaml", "metrics.json", "generation_config.json", "preprocessor_config.json"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"),
    ],
)
def test_published(name):
    assert is_publishable(name)


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "model.pth", "model.pkl", "training_args.bin", "modeling_own.py", ".env", ".token.json"),
        *("predictions.jsonl", "log.jsonl", "report.html", "events.out.tfevents.1", "data.csv", "notes.txt", "id.json"),
        *("Config.json", "config.json.bak", ".model.safetensors", "onnx/config.json", "checkpoints"),
        *("onnx/model.safetensors", "adapter/adapter_model.bin", "adapter/config.json", "adapter/sub/README.md"),
    ],
)
def test_not_published(name):
    assert not is_publishable(name)


def test_metrics_are_published_without_paths(make_recipe, tmp_path):
    recipe = make_recipe()
    metrics = {
        "test": {"accuracy": 0.5},
        "model": {"name": recipe.model.name, "revision": None},
        "data": {"name": recipe.data.name, "notes": [f"2 rows cut in {recipe.data.name}/train.csv"]},
        "environment": {"folder": recipe.output_dir},
    }
    public = public_metrics(metrics, recipe)
    data = f"./{Path(recipe.data.name).name}"
    assert public["test"] == metrics["test"]
    assert public["model"] == {"name": f"./{Path(recipe.model.name).name}", "revision": None}
    assert public["data"] == {"name": data, "notes": [f"2 rows cut in {data}/train.csv"]}
    assert public["environment"] == {"folder": "run"}


def test_hub_ids_in_metrics_stay(make_recipe):
    recipe = make_recipe(model__name="google/bert", data__name="org/set")
    metrics = {"model": {"name": "google/bert"}, "data": {"name": "org/set"}}
    assert public_metrics(metrics, recipe) == metrics


@pytest.mark.parametrize(
    ("base", "revision", "public"),
    [
        ("google/bert", "a" * 40, "google/bert"),
        ("pypi://some-model==1.0/inside", None, "pypi://some-model==1.0/inside"),
        ("/home/me/bert", None, None),
        ("/home/me/bert", "a" * 40, None),
        ("models/bert", None, None),  # a folder that reads like a Hub id
        (None, None, None),
    ],
)
def test_an_adapter_names_no_place_of_the_machine(tmp_path, base, revision, public):
    config = {"peft_type": "LORA", "r": 4, "target_modules": r".*\.(query|value)", "exclude_modules": ["~x", r".\d"]}
    config |= {"base_model_name_or_path": base, "revision": revision, "tokenizer_name_or_path": "/home/me/words"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = json.loads(public_adapter_config(tmp_path / "adapter_config.json"))
    assert found == {**config, "base_model_name_or_path": public, "tokenizer_name_or_path": "words"}


def test_marks_between_the_strings_of_compact_json_are_no_password():
    """A compact vocabulary has `"://":5,"x":6,"@":7`, which as one text reads like a password in a URL."""
    vocabulary = json.dumps({"://": 5, "x": 6, "@": 7}, separators=(",", ":"))
    refuse_secrets({"vocab.json": vocabulary.encode()})
    with pytest.raises(UserError, match=r"README\.md: holds a token"):
        refuse_secrets({"README.md": vocabulary.encode()})


def test_a_secret_behind_a_repeated_key_is_found(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcd-efgh-ijkl")
    with pytest.raises(UserError, match=r"config\.json: holds a token"):
        refuse_secrets({"config.json": b'{"a": "abcd-\\u0065fgh-ijkl", "a": "innocent"}'})
    with pytest.raises(UserError, match=r"vocab\.json: holds a token"):
        refuse_secrets({"vocab.json": b'{"x": {"abcd-efgh-ijkl": 1}}'})


def test_what_cannot_be_looked_through_is_refused():
    for name, content in (("vocab.txt", b"\xff\xfe"), ("config.json", b"{"), ("config.json", b"[" * 100_000)):
        with pytest.raises(UserError, match=f"{name}: is not "):
            refuse_secrets({name: content})


def test_weights_that_are_none_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (b"", b"\xff" * 16, (8).to_bytes(8, "little") + b"\xff" * 8):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors: is no"):
            refuse_secrets({path.name: path})
