"""Image classification through a whole run: any checkpoint, the views of an image, resuming, pipelines, bad rows."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from sft_hf.data.image_views import ImageViews
from sft_hf.errors import CheckpointError, DataError, RecipeError
from sft_hf.inference import evaluate_run, predict_inputs
from sft_hf.recipe import load_recipe, validate_recipe
from sft_hf.run import finetune
from sft_hf.sources import resolve
from sft_hf.tasks.image_classification import ImageClassification

SMALL_TIMM = {
    "input_size": [3, 32, 32],
    "crop_pct": 0.9,
    "mean": [0.4] * 3,
    "std": [0.3] * 3,
    "interpolation": "bicubic",
}


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level("INFO", logger="sft_hf")
    return caplog


@pytest.fixture(scope="module")
def resnet_checkpoint(tmp_path_factory):
    """A tiny ResNet whose processor resizes and crops, as ConvNeXt's."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.9).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def timm_checkpoint(tmp_path_factory):
    """A tiny timm CNN as Transformers saves it, its preprocessing in config.json."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_efficientnet", num_labels=5, pretrained_cfg=SMALL_TIMM)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_checkpoint, image_folder):
    recipe = validate_recipe(
        {
            "task": {"name": "image_classification", "augmentation": "none", "min_crop_area": 0.5},
            "model": {"name": str(image_checkpoint)},
            "data": {"name": str(image_folder)},
            "train": {
                "num_train_epochs": 6,
                "per_device_train_batch_size": 8,
                "mixed_precision": "no",
                "num_threads": 1,
            },
            "optim": {"learning_rate": 1e-2},
            "output_dir": str(tmp_path_factory.mktemp("runs") / "trained"),
        }
    )
    return finetune(recipe)


def check_pipeline(run, image_folder):
    """The saved model gives the labels and scores of predictions.jsonl, and of `predict`."""
    from transformers import pipeline

    files = sorted((image_folder / "test").rglob("*.png"))
    classify = pipeline("image-classification", model=str(run.output_dir / "model"), device="cpu")
    ours = read_rows(run.output_dir / "predictions.jsonl")
    predicted = list(predict_inputs(run.output_dir, [str(image_folder / "test")]))
    assert len(files) == len(ours) == len(predicted) == 12
    for path, row, new in zip(files, ours, predicted, strict=True):
        theirs = classify(str(path))[0]
        assert theirs["label"] == row["prediction"] == new["prediction"]
        assert theirs["score"] == pytest.approx(row["confidence"], abs=1e-5)
        assert theirs["score"] == pytest.approx(new["confidence"], abs=1e-5)
        assert new["image"] == str(path)


def test_a_run_learns_and_its_pipeline_agrees(trained, image_folder):
    metrics = trained.metrics
    assert metrics["task"] == "image_classification"
    assert metrics["test"]["accuracy"] > 0.9
    assert metrics["test"]["num_examples"] == 12
    assert metrics["validation"]["num_examples"] == 3
    assert [row["label"] for row in metrics["test"]["per_class"]] == ["blue", "green", "red"]
    check_pipeline(trained, image_folder)
    again = evaluate_run(trained.output_dir)
    assert again["accuracy"] == metrics["test"]["accuracy"]
    config = json.loads((trained.output_dir / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}


@pytest.mark.parametrize("kind", ["resnet", "timm", "timm_bare", "state_dict"])
def test_other_architectures_and_their_pipelines(
    make_image_recipe, image_folder, resnet_checkpoint, timm_checkpoint, tmp_path, kind, heard
):
    changes = {"train__max_steps": 2}
    if kind == "resnet":
        changes["model__name"] = str(resnet_checkpoint)
    elif kind == "timm":
        changes["model__name"] = str(timm_checkpoint)
    elif kind == "timm_bare":  # as save_pretrained leaves it: nothing says how images are prepared
        config = json.loads((timm_checkpoint / "config.json").read_text())
        del config["pretrained_cfg"]
        (tmp_path / "bare").mkdir()
        (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
        (tmp_path / "bare" / "model.safetensors").write_bytes((timm_checkpoint / "model.safetensors").read_bytes())
        changes["model__name"] = str(tmp_path / "bare")
    else:
        state = load_file(timm_checkpoint / "model.safetensors")
        save_file(
            {name.removeprefix("timm_model."): value for name, value in state.items()}, tmp_path / "w.safetensors"
        )
        changes |= {"model__name": str(tmp_path / "w.safetensors"), "model__architecture": "test_efficientnet"}
    result = finetune(make_image_recipe(**changes))
    check_pipeline(result, image_folder)
    saved = json.loads((result.output_dir / "model" / "config.json").read_text())
    if kind != "resnet":
        assert saved["model_type"] == "timm_wrapper"
        assert saved["label_names"] == ["blue", "green", "red"]
        assert saved["pretrained_cfg"]["input_size"] == ([3, 32, 32] if kind == "timm" else [3, 160, 160])
    assert "new weights, to be learned" in heard.text
    names = {path.suffix for path in result.output_dir.rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".yaml", ".safetensors", ".md", ".html"}


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_evaluation_may_see_the_whole_image(make_image_recipe, image_folder, resnet_checkpoint, timm_checkpoint, kind):
    name = str({"resnet": resnet_checkpoint, "timm": timm_checkpoint}[kind])
    result = finetune(make_image_recipe(model__name=name, task__crop_pct=1.0, train__max_steps=1))
    check_pipeline(result, image_folder)
    saved = json.loads((result.output_dir / "model" / "config.json").read_text()).get("pretrained_cfg")
    saved = saved or json.loads((result.output_dir / "model" / "preprocessor_config.json").read_text())
    assert saved["crop_pct"] == 1.0


def test_a_checkpoint_without_a_processor_gets_the_usual_one(make_image_recipe, image_checkpoint, tmp_path, heard):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((image_checkpoint / name).read_bytes())
    result = finetune(make_image_recipe(model__name=str(tmp_path), train__max_steps=1))
    assert "has no preprocessor_config.json: images are prepared as ViTImageProcessor does" in heard.text
    saved = json.loads((result.output_dir / "model" / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 16, "width": 16}


def test_many_labels_per_image(make_image_recipe, tmp_path, make_image):
    rows = []
    for index in range(24):
        label = ("blue", "green", "red")[index % 3]
        make_image(label, index).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "label": [label, "warm"] if label == "red" else [label]})
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = finetune(make_image_recipe(data__name=str(tmp_path), train__num_train_epochs=8))
    assert result.metrics["primary_metric"] == "micro_f1"
    assert result.metrics["test"]["micro_f1"] > 0.8
    (prediction,) = predict_inputs(result.output_dir, [str(tmp_path / "2.png")])
    assert set(prediction["prediction"]) <= {"blue", "green", "red", "warm"}
    assert 0 < prediction["confidence"] <= 1


# --- views ---------------------------------------------------------------------------------------------------


def processor_of(folder):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder)


@pytest.fixture(params=["vit", "resnet", "timm"])
def processor(request, image_checkpoint, resnet_checkpoint, timm_checkpoint):
    return processor_of({"vit": image_checkpoint, "resnet": resnet_checkpoint, "timm": timm_checkpoint}[request.param])


@pytest.mark.parametrize("augmentation", ["none", "trivial", "rand"])
@pytest.mark.parametrize("view", ["train", "weak", "strong"])
def test_a_random_view_is_a_function_of_its_seed_and_leaves_torch_alone(processor, augmentation, view, make_image):
    views = ImageViews(processor, augmentation, 0.35, horizontal_flip=True)
    image = make_image("red", 5, (60, 50))
    first = views(image, view, (42, 0, 7))
    assert first.dtype == torch.float32 and first.shape == (3, *views.size)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(views(image, view, (42, 0, 7)), first)
    assert torch.equal(torch.get_rng_state(), before)
    others = [views(image, view, seed) for seed in ((42, 1, 7), (42, 0, 8), (43, 0, 7))]
    assert all(not torch.equal(other, first) for other in others)


def test_views_are_normalized_as_the_processor_does(processor):
    views = ImageViews(processor, "none", 0.35, horizontal_flip=True)
    from PIL import Image

    for colour in ((0, 0, 0), (255, 255, 255), (10, 200, 90)):
        image = Image.new("RGB", (70, 50), colour)
        expected = views(image, "eval")
        assert torch.allclose(views(image, "train", (1, 2, 3)), expected, atol=1e-5)
        assert torch.allclose(views(image, "weak", (1, 2, 3)), expected, atol=1e-5)


def test_channels_in_another_order_are_found(make_image):
    class Swapped:
        resample = 3

        def __call__(self, image, return_tensors):
            pixels = torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).flip(0)
            return {"pixel_values": (pixels.float()[None] - 100) / 50}

    views = ImageViews(Swapped(), "none", 1.0, horizontal_flip=False)
    image = make_image("blue", 1, (8, 8)).resize((1, 1)).resize((8, 8))
    assert torch.allclose(views(image, "train", (1,)), views(image, "eval"), atol=1e-4)


def test_a_flip_can_be_forbidden(processor):
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, 32:] = 255
    from PIL import Image

    picture = Image.fromarray(image)
    never = ImageViews(processor, "none", 1.0, horizontal_flip=False)
    often = ImageViews(processor, "none", 1.0, horizontal_flip=True)

    def flipped(views):
        found = [views(picture, "train", (seed,)).mean(dim=(0, 1)) for seed in range(20)]
        return sum(bool(row[0] > row[-1]) for row in found)

    assert flipped(never) == 0
    assert 0 < flipped(often) < 20


def test_a_processor_without_a_fixed_size_is_refused(make_image_recipe, image_checkpoint, tmp_path):
    for path in image_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config["size"] = {"shortest_edge": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="different or unknown shapes"):
        finetune(make_image_recipe(model__name=str(tmp_path)))


def prepared(recipe):
    from sft_hf.run_inputs import load_data

    task = ImageClassification(recipe)
    splits = load_data(recipe, task, resolve(recipe.model.name))
    return task, {role: task.prepare(split, splits.where[role]) for role, split in splits.by_role.items()}


def test_examples_have_views_that_change_with_the_epoch(make_image_recipe):
    task, examples = prepared(make_image_recipe(task__augmentation="trivial"))
    train = examples["train"]

    def batch(view, rows=(0, 5, 9)):
        return task.collate([view.features[row] for row in rows])["pixel_values"]

    assert torch.equal(batch(train), batch(train))
    first, second = train.view("train", 0), train.view("train", 1)
    assert torch.equal(batch(first), batch(train.view("train", 0)))
    assert not torch.equal(batch(first), batch(second))
    assert not torch.equal(batch(train.view("weak", 0)), batch(train.view("strong", 0)))
    # A row looks the same whatever batch it is in, and whatever else was left away: its row id decides.
    assert torch.equal(batch(first)[1], batch(first, (5,))[0])
    limited = prepared(make_image_recipe(task__augmentation="trivial", data__max_train_samples=9))[1]["train"]
    row = int(np.flatnonzero(train.row_ids == limited.row_ids[4])[0])
    assert torch.equal(batch(limited.view("train", 3), (4,)), batch(train.view("train", 3), (row,)))


def test_decoding_in_threads_changes_nothing(make_image_recipe):
    task, examples = prepared(make_image_recipe())
    rows = examples["train"].view("train", 0).features
    alone = task.collate([rows[index] for index in range(12)])
    torch.set_num_threads(3)
    try:
        together = task.collate([rows[index] for index in range(12)])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone["pixel_values"], together["pixel_values"])
    assert torch.equal(alone["labels"], together["labels"])


# --- runs ----------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_run_with_augmentation_resumes_to_the_same_bits(make_image_recipe, tmp_path, monkeypatch, stop_after):
    settings = {"task__augmentation": "trivial", "checkpoint__save_steps": 2, "optim__learning_rate": 1e-3}
    whole = finetune(make_image_recipe(output_dir=str(tmp_path / "whole"), **settings))

    from sft_hf import loop

    plain = loop.train_step

    def dying(training, examples, window, state):
        if state.step == stop_after:
            raise Killed
        return plain(training, examples, window, state)

    recipe = make_image_recipe(output_dir=str(tmp_path / "died"), **settings)
    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(Killed):
        finetune(recipe)
    monkeypatch.setattr(loop, "train_step", plain)
    resumed = finetune(recipe, resume=True)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole.output_dir / "predictions.jsonl").read_text() == (
        resumed.output_dir / "predictions.jsonl"
    ).read_text()


def test_the_augmentation_reaches_training_and_not_evaluation(make_image_recipe, monkeypatch):
    seen = []
    plain = ImageClassification.collate

    def collate(self, features):
        seen.extend((row["view"], row.get("seed")) for row in features)
        return plain(self, features)

    monkeypatch.setattr(ImageClassification, "collate", collate)
    finetune(make_image_recipe(seed=5))
    training = [seed for view, seed in seen if view == "train"]
    assert len(training) == len(set(training)) == 2 * 27
    assert {(seed, epoch) for seed, epoch, _ in training} == {(5, 0), (5, 1)}
    assert {view for view, _ in seen} == {"train", "eval"}


def test_a_set_in_memory_and_a_stream(make_image_recipe, image_folder, tmp_path):
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": path.parent.name}
        for split in ("train",)
        for path in sorted((image_folder / split).rglob("*.jpg"))
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    result = finetune(make_image_recipe(data__name=str(tmp_path), train__max_steps=2))
    assert result.metrics["test"]["num_examples"] == 3
    streamed = make_image_recipe(
        data__streaming=True,
        data__stream_buffer_size=10,
        data__validation_fraction=0,
        train__max_steps=5,
        output_dir=str(tmp_path / "streamed"),
    )
    assert finetune(streamed).metrics["test"]["num_examples"] == 12


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
        finetune(make_image_recipe(data__name=str(damaged_folder)))
    message = str(caught.value)
    assert message.startswith(f"damaged/train row 8: {damaged_folder}/train/green/001.jpg: is truncated")
    assert "data.on_bad_row: skip" in message
    assert not (tmp_path / "run").exists()


def test_bad_rows_can_be_skipped_and_are_listed(make_image_recipe, damaged_folder, heard):
    recipe = make_image_recipe(data__name=str(damaged_folder), data__on_bad_row="skip", data__validation_fraction=0)
    result = finetune(recipe)
    assert "damaged/train: 2 of 18 rows skipped (data.on_bad_row): damaged/train row 8: " in heard.text
    assert "red/004.jpg: is truncated" in heard.text
    assert "damaged/test: 1 of 6 rows skipped" in heard.text
    assert result.metrics["train"]["num_examples"] == 16
    rows = read_rows(result.output_dir / "predictions.jsonl")
    assert [row["id"] for row in rows] == [0, 2, 3, 4, 5]  # ids stay the positions in the listing
    everything = damaged_folder / "train"
    for path in everything.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its images can be opened"):
        finetune(recipe, overwrite=True)


def test_a_file_that_vanishes_while_training_is_named(make_image_recipe, tmp_path, write_image_folder, monkeypatch):
    monkeypatch.setattr("sft_hf.data.image_store.CACHE_BYTES", 0)
    folder = write_image_folder(tmp_path / "set" / "train", 4)
    task, examples = prepared(make_image_recipe(data__name=str(folder.parent)))
    row = examples["train"].features[0]
    from pathlib import Path

    Path(row["store"].images[row["index"]]).unlink()
    with pytest.raises(DataError, match=rf"set/train row {int(examples['train'].row_ids[0]) + 1}: .*no such file"):
        task.collate([row])


def test_test_images_of_an_unknown_class_are_named(make_image_recipe, tmp_path, write_image_folder):
    write_image_folder(tmp_path / "train", 4)
    write_image_folder(tmp_path / "test", 1)
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rde")
    with pytest.raises(DataError, match=r"test row 3 .*'rde'.*did you mean red"):
        finetune(make_image_recipe(data__name=str(tmp_path)))


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
        finetune(make_image_recipe(**changes))
    assert all(word in str(caught.value) for word in words), caught.value


# --- prediction ----------------------------------------------------------------------------------------------


def test_inputs_are_files_folders_globs_and_tables(trained, image_folder, tmp_path, make_image):
    test = image_folder / "test"
    one = str(test / "red" / "000.png")
    (tmp_path / "list.csv").write_text(f"image\n{one}\nnear.png\n")
    make_image("green", 3).save(tmp_path / "near.png")
    rows = list(predict_inputs(trained.output_dir, [one, str(test / "blue"), str(test / "g*" / "*.png")]))
    assert [row["prediction"] for row in rows] == ["red"] + ["blue"] * 4 + ["green"] * 4
    assert [row["id"] for row in rows] == list(range(9))
    rows = list(predict_inputs(trained.output_dir, [str(tmp_path / "list.csv")]))
    assert [row["image"] for row in rows] == [one, str(tmp_path / "near.png")]
    assert [row["prediction"] for row in rows] == ["red", "green"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://example.org/a.jpg", ["is a URL", "none is fetched"]),
        ("{tmp}/gone.png", ["no such file", "did you mean gone2.png"]),
        ("{tmp}/none/gone.png", ["nor is there such a folder"]),
        ("{tmp}/*.tiff", ["no file matches"]),
        ("{tmp}/empty", ["no images in this folder"]),
        ("{tmp}/gone2.png", ["gone2.png", "is no image"]),
        ("{tmp}/a.csv", ["a.csv row 2", "no path"]),
        ("{tmp}/b.csv", ["no column 'image'"]),
    ],
)
def test_predict_says_what_is_wrong_with_its_input(trained, tmp_path, value, words):
    (tmp_path / "gone2.png").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text('image,x\na.png,1\n" ",2\n')
    (tmp_path / "b.csv").write_text("picture\na.png\n")
    with pytest.raises(DataError) as caught:
        list(predict_inputs(trained.output_dir, [value.format(tmp=tmp_path)]))
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_saved_recipe_gives_the_same_run_again(trained, tmp_path):
    recipe = load_recipe(str(trained.output_dir / "recipe.yaml"), [f"output_dir={tmp_path / 'again'}"])
    again = finetune(recipe)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (trained, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
