"""Runs on pictures that are not plain 8-bit RGB: one brightness scale in training, test and predict."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiers import long

from sft_hf.core.recipe.recipe import validate_recipe
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.run import predict_files


def write_set(folder, kind):
    """Two classes that differ in brightness alone, on a scale that no single dark file tells."""
    random = np.random.default_rng(0)
    for split, rows in (("train", 8), ("test", 3)):
        for name, level in (("dark", 0.1), ("light", 0.6)):
            (folder / split / name).mkdir(parents=True)
            for row in range(rows):
                values = level + 0.2 * random.random((12, 12))
                if kind == "12bit":
                    picture = Image.fromarray(np.round(values * 4095).astype(np.uint16))
                else:
                    picture = Image.fromarray((values * 1.25).astype(np.float32))
                ending = "png" if kind == "12bit" else "tif"
                picture.save(folder / split / name / f"{row}.{ending}")


@pytest.mark.parametrize(("kind", "scale"), [("12bit", {"integer": [0, 4095]}), long(("float", {"float": [0, 1]}))])
def test_one_scale_in_training_and_at_predict(tmp_path, image_checkpoint, heard, kind, scale):
    write_set(tmp_path / "set", kind)
    recipe = validate_recipe(
        {
            "task": {"name": "image_classification"},
            "model": {"name": str(image_checkpoint)},
            "data": {"name": str(tmp_path / "set"), "validation_fraction": 0.2},
            "optim": {"learning_rate": 3e-3},
            "train": {"num_train_epochs": 3, "per_device_train_batch_size": 8, "num_threads": 1},
            "eval": {"baseline": "none"},
            "output_dir": str(tmp_path / "run"),
        },
        "test",
    )
    finetune(recipe)
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["brightness"] == scale
    assert heard.text.count("more than 8 bits") == 1
    assert evaluate_run(tmp_path / "run", "test")["accuracy"] == 1.0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    files = sorted((tmp_path / "set" / "test").rglob("*.*"))
    for row, file in zip(rows, [file for file in files if file.is_file()], strict=True):
        (alone,) = predict_files(tmp_path / "run", [str(file)])  # its own range must not decide
        assert alone["prediction"] == row["prediction"]
        assert alone["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
