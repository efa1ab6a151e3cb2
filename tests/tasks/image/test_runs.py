"""Image classification through a whole run: any checkpoint, many labels, resuming, pipelines, prediction."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from small_runs import killed_and_resumed, read_rows
from tiers import long
from tiny_recipes import tiny_recipe

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.run import predict_files
from sft_hf.tasks.image.task import ImageClassification


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_checkpoint, image_folder):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    changes = {"task__augmentation": "none", "task__min_crop_area": 0.5, "train__num_train_epochs": 6}
    return finetune(tiny_recipe("image_classification", image_checkpoint, image_folder, folder, **changes))


def check_pipeline(run, image_folder):
    """The saved model gives the labels and scores of predictions.jsonl, and of `predict`."""
    from transformers import pipeline

    files = sorted((image_folder / "test").rglob("*.png"))
    classify = pipeline("image-classification", model=str(run.output_dir / "model"), device="cpu")
    ours = read_rows(run.output_dir / "predictions.jsonl")
    predicted = list(predict_files(run.output_dir, [str(image_folder / "test")]))
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


@pytest.mark.parametrize("kind", ["resnet", long("timm"), long("timm_bare"), "state_dict"])
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
    assert "randomly initialized weights" in heard.text
    names = {path.suffix for path in result.output_dir.rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".yaml", ".safetensors", ".md", ".html"}


@pytest.mark.parametrize("kind", [long("resnet"), "timm"])
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
    (prediction,) = predict_files(result.output_dir, [str(tmp_path / "2.png")])
    assert set(prediction["prediction"]) <= {"blue", "green", "red", "warm"}
    assert 0 < prediction["confidence"] <= 1


# --- resuming, augmentation, data of other kinds ---------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [long(2), 5])
def test_a_run_with_augmentation_resumes_to_the_same_bits(make_image_recipe, tmp_path, stop_after):
    settings = {"task__augmentation": "trivial", "checkpoint__save_steps": 2, "optim__learning_rate": 1e-3}
    whole = finetune(make_image_recipe(output_dir=str(tmp_path / "whole"), **settings))

    resumed = killed_and_resumed(make_image_recipe(output_dir=str(tmp_path / "died"), **settings), stop_after)
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


# --- prediction ----------------------------------------------------------------------------------------------


def test_inputs_are_files_folders_globs_and_tables(trained, image_folder, tmp_path, make_image):
    test = image_folder / "test"
    one = str(test / "red" / "000.png")
    (tmp_path / "list.csv").write_text(f"image\n{one}\nnear.png\n")
    make_image("green", 3).save(tmp_path / "near.png")
    rows = list(predict_files(trained.output_dir, [one, str(test / "blue"), str(test / "g*" / "*.png")]))
    assert [row["prediction"] for row in rows] == ["red"] + ["blue"] * 4 + ["green"] * 4
    assert [row["id"] for row in rows] == list(range(9))
    rows = list(predict_files(trained.output_dir, [str(tmp_path / "list.csv")]))
    assert [row["image"] for row in rows] == [one, str(tmp_path / "near.png")]
    assert [row["prediction"] for row in rows] == ["red", "green"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://example.org/a.jpg", ["is a URL", "not downloaded"]),
        ("{tmp}/gone.png", ["no such file", "did you mean gone2.png"]),
        ("{tmp}/none/gone.png", ["the folder does not exist either"]),
        ("{tmp}/*.tiff", ["no file matches"]),
        ("{tmp}/empty", ["no images in this folder"]),
        ("{tmp}/gone2.png", ["gone2.png", "is not a picture"]),
        ("{tmp}/a.csv", ["a.csv row 1", "does not hold a path"]),
        ("{tmp}/b.csv", ["no column 'image'"]),
    ],
)
def test_predict_says_what_is_wrong_with_its_input(trained, tmp_path, value, words):
    (tmp_path / "gone2.png").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text('image,x\na.png,1\n" ",2\n')
    (tmp_path / "b.csv").write_text("picture\na.png\n")
    with pytest.raises(DataError) as caught:
        list(predict_files(trained.output_dir, [value.format(tmp=tmp_path)]))
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_saved_recipe_gives_the_same_run_again(trained, tmp_path):
    recipe = load_recipe(str(trained.output_dir / "recipe.yaml"), [f"output_dir={tmp_path / 'again'}"])
    again = finetune(recipe)
    first, second = (load_file(run.output_dir / "model" / "model.safetensors") for run in (trained, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
