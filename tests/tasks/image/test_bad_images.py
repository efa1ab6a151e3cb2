"""Images, folders and checkpoints that cannot be used are named, before a run is begun."""

from __future__ import annotations

import pytest
import torch
from image_examples import prepared
from safetensors.torch import save_file
from small_runs import briefly, read_rows

from sft_hf.core.errors import CheckpointError, DataError, RecipeError


@pytest.fixture
def damaged_folder(tmp_path, write_image_folder):
    folder = tmp_path / "damaged"
    write_image_folder(folder / "train", 6, seed=1)
    write_image_folder(folder / "test", 2, seed=2)
    for name in ("train/green/001.jpg", "train/red/004.jpg", "test/blue/001.jpg"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-300])
    return folder


def test_a_bad_row_stops_the_run_before_anything_is_written(make_image_recipe, damaged_folder, tmp_path):
    with pytest.raises(DataError) as caught:
        briefly(make_image_recipe(data__name=str(damaged_folder)))
    message = str(caught.value)
    assert message.startswith(f"damaged/train row 7: {damaged_folder}/train/green/001.jpg: is truncated")
    assert "data.on_bad_row: skip" in message
    assert not (tmp_path / "run").exists()


def test_bad_rows_can_be_skipped_and_are_listed(make_image_recipe, damaged_folder, heard):
    recipe = make_image_recipe(data__name=str(damaged_folder), data__on_bad_row="skip", data__validation_fraction=0)
    result = briefly(recipe)
    assert "damaged/train: 2 of 18 rows skipped (data.on_bad_row): damaged/train row 7: " in heard.text
    assert "red/004.jpg: is truncated" in heard.text
    assert "damaged/test: 1 of 6 rows skipped" in heard.text
    assert result.metrics["train"]["num_examples"] == 16
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert [row["id"] for row in rows] == [0, 2, 3, 4, 5]  # ids stay the positions in the listing
    everything = damaged_folder / "train"
    for path in everything.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its images can be opened"):
        briefly(recipe, overwrite=True)


def test_a_file_that_vanishes_while_training_is_named(make_image_recipe, tmp_path, write_image_folder, monkeypatch):
    monkeypatch.setattr("sft_hf.tasks.image.image_store.CACHE_BYTES", 0)
    folder = write_image_folder(tmp_path / "set" / "train", 4)
    task, examples = prepared(make_image_recipe(data__name=str(folder.parent)))
    row = examples["train"].features[0]
    from pathlib import Path

    Path(row["store"].images[row["index"]]).unlink()
    with pytest.raises(DataError, match=rf"set/train row {int(examples['train'].row_ids[0])}: .*no such file"):
        task.collate([row])


def test_test_images_of_an_unknown_class_are_named(make_image_recipe, tmp_path, write_image_folder):
    write_image_folder(tmp_path / "train", 4)
    write_image_folder(tmp_path / "test", 1)
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rde")
    with pytest.raises(DataError, match=r"test row 2 .*'rde'.*did you mean red"):
        briefly(make_image_recipe(data__name=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"data__image_column": "img", "data__name": "CSV"},
            DataError,
            ["img", "data.image_column", "did you mean image"],
        ),
        ({"model__name": "TEXT"}, CheckpointError, ["cannot classify images", "bert"]),
        ({"model__name": "WEIGHTS"}, CheckpointError, ["model.architecture"]),
        ({"model__name": "WEIGHTS", "model__architecture": "bert"}, CheckpointError, ["cannot classify images"]),
        ({"model__name": "WEIGHTS", "model__architecture": "resnet19"}, RecipeError, ["did you mean resnet18"]),
        ({"task__crop_pct": 0.9}, RecipeError, ["task.crop_pct", "ViTImageProcessor"]),
        ({"model__config_overrides": {"hidden_sise": 8}}, RecipeError, ["did you mean hidden_size"]),
    ],
)
def test_what_cannot_be_trained_is_refused(make_image_recipe, checkpoint, tmp_path, changes, error, words):
    (tmp_path / "rows.csv").write_text("image,label\na.jpg,x\nb.jpg,y\n")
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    places = {"CSV": tmp_path / "rows.csv", "TEXT": checkpoint, "WEIGHTS": tmp_path / "w.safetensors"}
    changes = {
        key: str(places.get(value, value)) if isinstance(value, str) else value for key, value in changes.items()
    }
    with pytest.raises(error) as caught:
        briefly(make_image_recipe(**changes))
    assert all(word in str(caught.value) for word in words), caught.value
