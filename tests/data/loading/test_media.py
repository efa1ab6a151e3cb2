"""Folders of images and tables of paths become rows of absolute paths and classes."""

from __future__ import annotations

import csv
import json

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.core.sources.sources import resolve
from sft_hf.data.loading.image_folders import find_images, natural_key, read_image_folder
from sft_hf.data.loading.loading import load_splits

COLUMNS = {"data.image_column": "image", "data.label_column": "label"}


def load(path, columns=COLUMNS, **settings):
    section = DataSection(name=str(path), **settings)
    source = resolve(str(path), what="data set", key="data")
    return load_splits(section, source, columns)


@pytest.fixture
def tree(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith((".jpg", ".png", ".JPG")):
                Image.new("RGB", (4, 4)).save(path)
            else:
                path.write_text("words")
        return tmp_path

    return make


def rows(split, folder):
    names = split.features["label"].names if hasattr(split.features["label"], "names") else None
    return [
        (row["image"].removeprefix(f"{folder}/"), names[row["label"]] if names else row["label"], row["row_id"])
        for row in split
    ]


def test_folders_of_splits_and_classes(tree):
    folder = tree("train/cat/b.jpg", "train/cat/a.png", "train/dog/1.JPG", "test/dog/x.jpg", "extra/cat/y.jpg")
    splits = load(folder)
    assert rows(splits.by_role["train"], folder) == [
        ("train/cat/a.png", "cat", 0),
        ("train/cat/b.jpg", "cat", 1),
        ("train/dog/1.JPG", "dog", 2),
    ]
    assert rows(splits.by_role["test"], folder) == [("test/dog/x.jpg", "dog", 0)]
    assert "validation" not in splits.by_role
    assert splits.where == {"train": f"{folder.name}/train", "test": f"{folder.name}/test"}
    assert splits.notes == ["not used: split extra"]


def test_the_validation_folder_may_be_called_val(tree):
    folder = tree("train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/2.jpg")
    assert len(load(folder).by_role["validation"]) == 2


def test_folders_of_classes_alone_are_train(tree):
    folder = tree("cat/1.jpg", "cat/deep/er/2.jpg", "dog/3.jpg", ".hidden/x/4.jpg", "cat/.trash.jpg")
    splits = load(folder)
    assert list(splits.by_role) == ["train"]
    assert [name for name, _, _ in rows(splits.by_role["train"], folder)] == [
        "cat/1.jpg",
        "cat/deep/er/2.jpg",
        "dog/3.jpg",
    ]


def test_other_split_names_are_named_by_the_recipe(tree):
    folder = tree("Learn/a/1.jpg", "Learn/b/1.jpg", "Exam/a/2.jpg", "Exam/b/2.jpg")
    splits = load(folder, train_split="Learn", test_split="Exam")
    assert [len(splits.by_role[role]) for role in ("train", "test")] == [2, 2]
    with pytest.raises(DataError, match=r"two folders deep.*data\.train_split"):
        load(folder)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["class10", "class9", "Class1"], ["Class1", "class9", "class10"]),
        (["b", "A", "c"], ["A", "b", "c"]),
        (["007", "7", "07"], ["007", "07", "7"]),
    ],
)
def test_classes_are_in_natural_order(tree, names, order):
    folder = tree(*(f"{name}/1.jpg" for name in names))
    table, _ = read_image_folder(folder, "image", "label")
    assert table.features["label"].names == order == sorted(names, key=natural_key)
    paths = table["image"][:]
    assert paths == sorted(paths)  # the row id is the position among the sorted paths, whatever the classes' order
    assert [order[label] for label in table["label"]] == [path.split("/")[-2] for path in paths]


def test_the_columns_have_the_names_of_the_recipe(tree):
    folder = tree("a/1.jpg", "b/1.jpg")
    columns = {"data.image_column": "picture", "data.label_column": "kind"}
    splits = load(folder, columns, image_column="picture", label_column="kind")
    assert splits.by_role["train"].column_names == ["picture", "kind", "row_id"]


def test_what_is_left_out_is_noted(tree):
    folder = tree("a/1.jpg", "a/notes.txt", "b/1.jpg", "c/readme.md")
    notes = " ".join(load(folder).notes)
    assert "without images: c" in notes
    assert "2 files skipped" in notes and "a/notes.txt" in notes


def test_links_are_followed_but_not_in_circles(tree):
    folder = tree("a/1.jpg", "b/1.jpg")
    (folder / "a" / "again").symlink_to(folder / "a")
    (folder / "c").symlink_to(folder / "b")
    assert len(find_images(folder)[0]) == 2
    table, _ = read_image_folder(folder, "image", "label")
    assert table.features["label"].names == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["1.jpg", "2.jpg"], ["one folder per class"]),
        (["train/1.jpg", "train/2.jpg"], ["train/1.jpg", "one folder per class"]),
        (["test/a/1.jpg", "test/b/1.jpg"], ["no split 'train'", "test"]),
        (["a/x.txt"], ["a split is a file named after it"]),
    ],
)
def test_layouts_that_cannot_be_meant_are_refused(tree, names, words):
    with pytest.raises(DataError) as caught:
        load(tree(*names))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_task_that_reads_no_images_hears_of_tables(tree):
    folder = tree("train/a/1.jpg", "train/b/1.jpg")
    with pytest.raises(DataError, match="a split is a file named after it"):
        load(folder, {"data.text_column": "text"})


def write_table(path, kind, names):
    rows = [{"image": name, "label": label} for name, label in names]
    if kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_a_table_are_relative_to_it(tree, kind, streaming, tmp_path):
    folder = tree("lists/pics/1.jpg", "lists/pics/2.jpg")
    elsewhere = str(folder / "lists" / "pics" / "2.jpg")
    names = [("pics/1.jpg", "a"), (elsewhere, "b"), ("https://example.org/3.jpg", "b")]
    write_table(folder / "lists" / f"train.{kind}", kind, names)
    splits = load(folder, data_files={"train": f"lists/train.{kind}"}, streaming=streaming)
    assert [row["image"] for row in splits.by_role["train"]] == [
        str(folder / "lists" / "pics" / "1.jpg"),
        elsewhere,
        "https://example.org/3.jpg",
    ]
    assert splits.by_role["train"][1]["row_id"] == 1 if not streaming else True
    one = load(folder / "lists" / f"train.{kind}", streaming=streaming).by_role["train"]
    assert next(iter(one))["image"] == str(folder / "lists" / "pics" / "1.jpg")


def test_a_table_of_the_split_wins_over_folders(tree):
    folder = tree("pics/1.jpg", "more/2.jpg")
    write_table(folder / "train.csv", "csv", [("pics/1.jpg", "a"), ("more/2.jpg", "b")])
    assert load(folder).where == {"train": "train.csv"}


def test_text_columns_stay_as_they_are(tmp_path):
    (tmp_path / "train.csv").write_text("text,image\nhello,x.jpg\n")
    split = load(tmp_path, {"data.text_column": "text"}).by_role["train"]
    assert split[0]["image"] == "x.jpg"


@pytest.mark.parametrize("streaming", [False, True])
def test_images_inside_a_data_set_are_not_decoded(tree, streaming, tmp_path):
    folder = tree("pics/1.jpg")
    content = (folder / "pics" / "1.jpg").read_bytes()
    features = Features({"image": ImageFeature(), "label": Value("string")})
    table = Dataset.from_dict({"image": [{"bytes": content, "path": "1.jpg"}] * 2, "label": ["a", "b"]}, features)
    table.to_parquet(folder / "train.parquet")
    table.save_to_disk(str(folder / "saved"))
    for path in (folder, folder / "saved"):
        row = next(iter(load(path, streaming=streaming).by_role["train"]))
        assert row["image"]["bytes"] == content
