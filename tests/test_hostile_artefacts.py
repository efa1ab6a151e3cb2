"""Pickles that run code, in every place where a file is read; bombs; tags: nothing runs, nothing is written outside."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiers import quick

from sft_hf.core.filesystem import sha256_of


class Planted:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "executed")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def planted(marker):
    return pickle.dumps(Planted(marker))


def harmless(done, marker, code=2):
    """No code was run, and what the user hears is one line."""
    assert done.wait() == code, done.said()
    assert not marker.exists()
    assert "Traceback" not in done.said()
    if code:
        assert done.said().splitlines()[-1].startswith("error: "), done.said()


def test_the_pickle_would_run(planted, marker):
    pickle.loads(planted)
    assert marker.exists()


def train(commands, recipe_file, tmp_path, *more):
    return commands.run("finetune", str(recipe_file), "train.max_steps=1", *more, "--output-dir", str(tmp_path / "run"))


WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize("name", quick(WEIGHTS, [*WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"]))
def test_in_a_checkpoint(commands, recipe_file, checkpoint, tmp_path, marker, planted, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(planted)
    harmless(train(commands, recipe_file, tmp_path, f"model.name={folder}"), marker)
    assert not (tmp_path / "run").exists()


BESIDE = ["training_args.bin", "optimizer.pt", "vocab.txt", "generation_config.json", "x.py"]


@pytest.mark.parametrize("name", quick(["training_args.bin", "x.py"], BESIDE))
def test_beside_a_checkpoint(commands, recipe_file, checkpoint, tmp_path, marker, planted, name):
    """Files that nothing needs are not opened, or do no harm."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / name).write_bytes(planted)
    done = train(commands, recipe_file, tmp_path, f"model.name={folder}")
    harmless(done, marker, done.wait())


FILES = ["w.pth", "w.pt", "w.bin", "w.safetensors", "w.npy", "w.vec", "w.txt", "w.txt.gz"]


@pytest.mark.parametrize("name", quick(["w.pth", "w.npy", "w.txt.gz"], FILES))
def test_as_a_file_of_weights(commands, recipe_file, tmp_path, marker, planted, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(planted) if name.endswith(".gz") else planted)
    harmless(train(commands, recipe_file, tmp_path, f"model.name={path}"), marker)


def test_as_a_state_dict_of_images(commands, make_image_recipe, tmp_path, marker, planted):
    (tmp_path / "w.pth").write_bytes(planted)
    path = tmp_path / "image.yaml"
    path.write_text(make_image_recipe(model__name=str(tmp_path / "w.pth"), model__architecture="resnet18").to_yaml())
    harmless(commands.run("finetune", str(path), "--output-dir", str(tmp_path / "run")), marker)


def test_as_an_array_of_objects(commands, recipe_file, tmp_path, marker):
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "vectors.npy", np.array([Planted(marker)], dtype=object), allow_pickle=True)
    harmless(train(commands, recipe_file, tmp_path, f"model.name={folder}"), marker)
    harmless(train(commands, recipe_file, tmp_path, f"model.name={folder / 'vectors.npy'}"), marker)


@pytest.mark.parametrize("suffix", quick([".csv", ".parquet"], [".csv", ".tsv", ".jsonl", ".json", ".parquet"]))
def test_as_data(commands, recipe_file, tmp_path, marker, planted, suffix):
    path = tmp_path / f"train{suffix}"
    path.write_bytes(planted)
    harmless(train(commands, recipe_file, tmp_path, f"data.name={path}"), marker)


def test_as_an_image_and_a_recording(
    commands, make_image_recipe, make_speech_recipe, image_folder, speech_folder, tmp_path, marker, planted
):
    shutil.copytree(image_folder, tmp_path / "images")
    shutil.copytree(speech_folder, tmp_path / "speech")
    next((tmp_path / "images" / "train" / "red").iterdir()).write_bytes(planted)
    (tmp_path / "speech" / "train" / "00.wav").write_bytes(planted)
    for name, recipe in (
        ("images", make_image_recipe(data__name=str(tmp_path / "images"))),
        ("speech", make_speech_recipe(data__name=str(tmp_path / "speech"))),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe.to_yaml())
        harmless(commands.run("finetune", str(path), "--output-dir", str(tmp_path / "run")), marker)


@pytest.fixture(scope="module")
def died(commands, recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("died") / "run"
    arguments = ("finetune", str(recipe_file), "--output-dir", str(folder))
    assert commands.run(*arguments, SFT_HF_FAIL_POINT="step-000022:1").wait() == -9
    return folder


SAVED = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "x.pt"]


@pytest.mark.parametrize("name", quick(["optimizer.safetensors", "state.json"], SAVED))
@pytest.mark.parametrize("manifest", quick(["manifest that agrees"], ["old manifest", "manifest that agrees"]))
def test_in_a_checkpoint_to_resume(commands, recipe_file, died, tmp_path, marker, planted, name, manifest):
    folder = tmp_path / "run"
    shutil.copytree(died, folder)
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    (checkpoint / name).write_bytes(planted)
    if manifest == "manifest that agrees" and name != "manifest.json":
        entries = json.loads((checkpoint / "manifest.json").read_text())
        entries[name] = {"size": len(planted), "sha256": sha256_of(checkpoint / name)}
        (checkpoint / "manifest.json").write_text(json.dumps(entries))
    done = commands.run("finetune", str(recipe_file), "--output-dir", str(folder), "--resume")
    harmless(done, marker, done.wait())
    assert done.wait() in (0, 2)


@pytest.fixture(scope="module")
def finished(commands, recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert commands.run("finetune", str(recipe_file), "train.max_steps=1", "--output-dir", str(folder)).wait() == 0
    return folder


FINISHED = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", quick(["model.safetensors", "config.json"], FINISHED))
def test_in_a_finished_run(commands, finished, tmp_path, marker, planted, name):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "model" / name).write_bytes(planted)
    harmless(commands.run("predict", str(folder), "goal"), marker)


def tags(marker):
    return [
        f"!!python/object/apply:pathlib.Path.write_text [!!python/object/apply:pathlib.Path ['{marker}'], executed]",
        f"!!python/object/apply:os.system ['touch {marker}']",
        f"!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!binary aGVsbG8=",
    ]


@pytest.mark.parametrize("index", range(5))
def test_yaml_tags(commands, recipe_file, finished, tmp_path, marker, index):
    tag = tags(marker)[index]
    path = tmp_path / "hostile.yaml"
    path.write_text(recipe_file.read_text() + f"\nseed: {tag}\n")
    harmless(commands.run("show", str(path)), marker)
    harmless(commands.run("show", str(recipe_file), f"seed={tag}"), marker)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "recipe.yaml").write_text(f"task: {tag}\n")
    harmless(commands.run("predict", str(folder), "goal"), marker)


BOMBS = {
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)),
    "deep": "a: " + "[" * 50_000,
    "deep_map": "{a: " * 20_000,
    "large": "# " + "x" * (2 << 20),
    "self": "&a [*a]",
    "keys": "? [1, 2]\n: 3\n",
    "number": "seed: " + "9" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_bombs(commands, tmp_path, marker, name):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[name])
    harmless(commands.run("show", str(path)), marker)
    harmless(commands.run("show", "text", f"model.config_overrides={{a: {BOMBS[name][:90_000]}}}"), marker)


def test_a_bomb_among_word_vectors(commands, recipe_file, tmp_path, marker):
    """Two gigabytes of zeros in two megabytes."""
    block = gzip.compress(b"0" * (1 << 24), 9)
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(block * 128)
    harmless(train(commands, recipe_file, tmp_path, f"model.name={path}"), marker)


def test_a_bomb_among_tables(commands, recipe_file, tmp_path, marker):
    """A Parquet file of a few bytes that says it has 2^62 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a"] * 1000, "label": ["b"] * 1000}), path)
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    rows = data.index(b"\xd0\x0f", len(data) - 8 - footer)  # 1000 as a zigzag varint
    data[rows : rows + 2] = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
    data[-8:-4] = (footer + 7).to_bytes(4, "little")
    path.write_bytes(data)
    harmless(train(commands, recipe_file, tmp_path, f"data.name={path}"), marker)
