"""What a checkpoint names outside its folder is not opened; its own code runs only if the command line says so."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from transformers import AutoModel, AutoTokenizer

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.models.folder_safety import check_folder

SECRET = "secret-line-of-another-file"


@pytest.fixture
def folder(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (tmp_path / "outside.txt").write_text(f"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{SECRET}\n")
    return tmp_path / "checkpoint"


def change(folder, name, **values):
    path = folder / name
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**data, **values}))


def test_transformers_alone_would_read_the_file_outside(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", vocab=str(tmp_path / "outside.txt"))
    assert SECRET in AutoTokenizer.from_pretrained(folder).get_vocab()
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: vocab names .*outside its folder"):
        check_folder(folder)


def test_and_the_weights_of_an_index(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {"embeddings.word_embeddings.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    AutoModel.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"weight_map names '../other.safetensors'"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"vocab_file": "/etc/hostname"}),
        ("tokenizer_config.json", {"merges": "../outside.txt"}),
        ("tokenizer_config.json", {"vocab": "words.txt"}),  # of the working folder
        ("tokenizer_config.json", {"tokenizer_file": "../../x.json"}),
        ("config.json", {"nested": {"deeper": [{"something_file": "/nowhere/at/all"}]}}),
        ("config.json", {"anything": "../outside.txt"}),
        ("preprocessor_config.json", {"mel_filters": "/etc/hostname"}),
        ("adapter_config.json", {"base_model_name_or_path": "/somewhere/else"}),
        ("model.safetensors.index.json", {"weight_map": {"a": "/x.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": ["a"]}),
    ],
)
def test_names_of_files_outside_are_refused(folder, name, values):
    change(folder, name, **values)
    with pytest.raises(CheckpointError, match=name):
        check_folder(folder)


def test_innocent_values_pass(folder):
    change(folder, "config.json", _name_or_path="/home/of/somebody/model", note="see ../README", slash="/")
    change(folder, "tokenizer_config.json", vocab_file="vocab.txt", merges=["a b"], chat_template="../x/{{ y }}")
    check_folder(folder)


def test_links_may_stay_inside_or_in_the_hub_cache(folder, tmp_path):
    repository = tmp_path / "models--x--y"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copy(folder / "config.json", repository / "blobs" / "abc")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_folder(snapshot)
    (snapshot / "vocab.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(CheckpointError, match="is a link to"):
        check_folder(snapshot)
    os.unlink(folder / "vocab.txt")
    (folder / "vocab.txt").symlink_to("config.json")
    check_folder(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * (1 << 26) + b'"'])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        check_folder(folder)


# --- code ----------------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("ran")
Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification
class MyConfig(BertConfig):
    model_type = "my_bert"
class MyModel(BertForSequenceClassification):
    config_class = MyConfig
"""


@pytest.fixture
def own_code(folder, tmp_path):
    """A checkpoint with code of its own, and the file that is there once it ran."""
    marker = tmp_path / "marker"
    (folder / "my_bert.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "my_bert.MyConfig", "AutoModelForSequenceClassification": "my_bert.MyModel"}
    change(folder, "config.json", model_type="my_bert", architectures=["MyModel"], auto_map=auto_map)
    return folder, marker


def test_code_runs_only_when_the_command_line_says_so(commands, recipe_file, own_code, tmp_path):
    folder, marker = own_code
    command = ("finetune", str(recipe_file), "train.max_steps=2", f"model.name={folder}")
    refused = commands.run(*command, "--output-dir", str(tmp_path / "run"))
    assert refused.wait() == 2 and not marker.exists(), refused.said()
    assert "model.trust_remote_code=true" in refused.said() and "Traceback" not in refused.said()
    assert not (tmp_path / "run").exists()

    allowed = (*command, "model.trust_remote_code=true", "--output-dir", str(tmp_path / "run"))
    done = commands.run(*allowed)
    assert done.wait() == 0, done.said()
    assert marker.exists()

    for arguments in (("predict", str(tmp_path / "run"), "goal"), ("evaluate", str(tmp_path / "run"))):
        marker.unlink()
        refused = commands.run(*arguments)
        assert refused.wait() == 2 and not marker.exists(), refused.said()
        assert "recipe.yaml: model.trust_remote_code: a recipe file cannot allow code that comes with a model" in (
            refused.said()
        )
        allowed = commands.run(*arguments, "--trust-remote-code")
        assert allowed.wait() == 0, allowed.said()


def test_a_file_cannot_allow_it(recipe_file, tmp_path):
    path = tmp_path / "trusting.yaml"
    path.write_text(recipe_file.read_text().replace("model: {", "model: {trust_remote_code: true, "))
    with pytest.raises(RecipeError, match=r"trusting.yaml: model.trust_remote_code: .* code .* command line"):
        load_recipe(str(path))
    assert load_recipe(str(path), ["model.trust_remote_code=true"]).model.trust_remote_code
    assert not load_recipe(str(path), ["model.trust_remote_code=false"]).model.trust_remote_code
    with pytest.raises(RecipeError):
        load_recipe(str(path), ["model.revision=null"])
