"""Not one pickle is opened, in any scenario, from training to prediction: whatever would open one is a trap here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from tiers import long

TRAPS = """
import _pickle, pickle, sys, traceback

def trap(name):
    def caught(*arguments, **options):
        traceback.print_stack()
        print("A PICKLE IS OPENED BY", name, file=sys.stderr, flush=True)
        import os
        os._exit(66)
    return caught

class Trap:
    dispatch = {}

    def __init__(self, *arguments, **options):
        trap("Unpickler")()

    def load(self):
        "Read by dill when it is imported, for its documentation."

for module in (pickle, _pickle):
    module.Unpickler = Trap
    module.load, module.loads = trap("load"), trap("loads")
pickle._Unpickler = Trap
pickle._load, pickle._loads = trap("_load"), trap("_loads")

import os
from sft_hf.cli import run

def main(*arguments, code=0):
    found = run(list(arguments))
    assert found == code, (arguments, found)

for recipe in sys.argv[1:]:
    folder = recipe.removesuffix(".yaml")
    main("finetune", recipe, "--output-dir", folder)
    os.remove(folder + "/metrics.json")
    main("finetune", recipe, "--output-dir", folder, "--resume")
    main("evaluate", folder)
    main("predict", folder, open(folder + ".input").read())
"""


def real(commands, *arguments):
    """In a process in which the traps are there before anything is imported."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )


def forked(commands, *arguments):
    """Faster: of a process that has imported everything. A function that a module imported by its name is no trap."""
    return commands.python(*arguments)


@pytest.mark.parametrize(
    ("start", "names"), [(forked, ["old"]), long((real, ["text", "old", "image", "speech"]))], ids=["forked", "real"]
)
def test_training_resuming_and_predicting_open_no_pickle(
    commands,
    start,
    names,
    make_recipe,
    make_image_recipe,
    make_speech_recipe,
    image_folder,
    speech_folder,
    checkpoint,
    tmp_path,
):
    import torch
    from safetensors.torch import load_file

    old = tmp_path / "old_checkpoint"  # the format of pickles, which torch.load(weights_only=True) reads by itself
    old.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (old / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(checkpoint / "model.safetensors"), old / "pytorch_model.bin")
    steps = {"train__max_steps": 2}
    recipes = {
        "text": (make_recipe(**steps), "goal match"),
        "old": (make_recipe(**steps, model__name=str(old)), "goal match"),
        "image": (make_image_recipe(**steps), str(next((image_folder / "test" / "red").iterdir()))),
        "speech": (make_speech_recipe(**steps), str(speech_folder / "test" / "00.wav")),
    }
    files = []
    for name in names:
        recipe, value = recipes[name]
        data = yaml.safe_load(recipe.to_yaml())
        data.pop("output_dir")
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        path.with_suffix(".input").write_text(value)
        files.append(str(path))
    (tmp_path / "traps.py").write_text(TRAPS)
    done = start(commands, str(tmp_path / "traps.py"), *files)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('{"id": 0, ') == len(names)


def test_the_traps_work(tmp_path):
    (tmp_path / "traps.py").write_text(TRAPS + "\nimport pickle; pickle.loads(b'')")
    done = subprocess.run([sys.executable, str(tmp_path / "traps.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 66 and "A PICKLE IS OPENED BY loads" in done.stderr
