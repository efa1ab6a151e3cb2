"""Which folders are splits and classes, and what is said of files that are left out."""

from __future__ import annotations

import json
import unicodedata

import pytest
from PIL import Image

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.core.sources.sources import resolve
from sft_hf.data.loading.image_folders import list_pictures, read_image_folder
from sft_hf.data.loading.loading import load_splits

COLUMNS = {"data.image_column": "image", "data.label_column": "label"}


def load(path, **settings):
    section = DataSection(name=str(path), **settings)
    return load_splits(section, resolve(str(path), what="data set", key="data"), COLUMNS)


@pytest.fixture
def tree(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith((".jpg", ".jfif", ".png")):
                Image.new("RGB", (4, 4)).save(path, "JPEG" if "j" in path.suffix else "PNG")
            else:
                path.write_text("words")
        return tmp_path

    return make


def labels(split):
    feature = split.features["label"]
    names = getattr(feature, "names", None)
    return [names[label] if names else label for label in split["label"]]


@pytest.mark.parametrize(
    ("classes", "called"),
    [
        (["bus", "car", "train"], ["train"]),
        (["tram", "train"], ["train"]),
        (["invalid", "valid"], ["valid"]),
        (["dev", "prod", "val"], ["dev", "val"]),
    ],
)
def test_a_class_called_like_a_split(tree, classes, called):
    folder = tree(*(f"{name}/{number}.jpg" for name in classes for number in range(2)))
    splits = load(folder)
    assert list(splits.by_role) == ["train"] and set(labels(splits.by_role["train"])) == set(classes)
    assert all(name in splits.notes[0] for name in called) and "read as a class" in splits.notes[0]


def test_a_class_called_test_could_be_unlabelled_pictures(tree):
    with pytest.raises(DataError, match=r"test could be a class, like cat.*rename.*train"):
        load(tree("cat/1.jpg", "dog/2.jpg", "test/3.jpg"))


def test_a_split_beside_other_folders_is_one(tree):
    splits = load(tree("train/a/1.jpg", "train/b/2.jpg", "raw/3.jpg"))
    assert set(labels(splits.by_role["train"])) == {"a", "b"}
    assert "not used: split raw" in splits.notes


@pytest.mark.parametrize("places", [["test/1.jpg", "test/2.jpg"], ["test/unknown/1.jpg"], ["test/all/deep/1.png"]])
def test_unlabelled_test_pictures(tree, places):
    splits = load(tree("train/a/1.jpg", "train/b/2.jpg", *places))
    assert splits.by_role["test"]["label"][:] == [None] * len(places)
    assert any(f"{len(places)} pictures in no folder of a class" in note for note in splits.notes)


def test_one_folder_of_a_known_class_is_labelled(tree):
    splits = load(tree("train/a/1.jpg", "train/b/2.jpg", "test/a/1.jpg"))
    assert labels(splits.by_role["test"]) == ["a"]


def test_validation_pictures_need_labels(tree):
    with pytest.raises(DataError, match=r"val.*no images in folders named after their classes"):
        load(tree("train/a/1.jpg", "train/b/2.jpg", "val/1.jpg"))


@pytest.mark.parametrize("inner", ["pets", "pets/images", "data/v1/set"])
def test_folders_that_hold_only_one_folder_are_passed(tree, inner):
    folder = tree(f"{inner}/cat/1.jpg", f"{inner}/dog/1.jpg", "readme.md")
    splits = load(folder)
    assert set(labels(splits.by_role["train"])) == {"cat", "dog"}
    assert inner in splits.notes[0]


def test_endings_do_not_decide(tree):
    folder = tree("red/1.jfif", "red/2.jfif", "blue/1.jpg", "blue/2.jfif")
    (folder / "blue" / "2.jfif").rename(folder / "blue" / "no_ending")
    splits = load(folder)
    assert sorted(labels(splits.by_role["train"])) == ["blue", "blue", "red", "red"] and splits.notes == []


def test_files_of_the_system_are_counted(tree):
    folder = tree("a/1.jpg", "a/._1.jpg", "a/Thumbs.db", "a/.DS_Store", "b/2.jpg", "b/desktop.ini", "b/notes.txt")
    tree("__MACOSX/a/._1.jpg", "@eaDir/a/1.jpg")
    splits = load(folder)
    assert len(splits.by_role["train"]) == 2
    notes = " ".join(splits.notes)
    assert "4 hidden or system files" in notes and "Thumbs.db" in notes
    assert "1 file skipped: not images: b/notes.txt" in notes


def test_pictures_beside_class_folders_are_said(tree):
    splits = load(tree("train/a/1.jpg", "train/b/2.jpg", "train/loose.jpg", "train/loose2.png"))
    assert any("2 images skipped: not in a class folder" in note for note in splits.notes)


def test_the_unicode_form_of_a_folder_makes_no_other_class(tree):
    nfc, nfd = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    folder = tree(f"train/{nfc}/1.jpg", "train/b/1.jpg", f"test/{nfd}/1.jpg", f"train/{nfd}/2.jpg")
    splits = load(folder)
    assert labels(splits.by_role["test"]) == [nfc]
    assert sorted(labels(splits.by_role["train"])) == sorted([nfc, nfc, "b"])
    assert any("2 folders" in note and nfc in note for note in splits.notes)


def test_a_table_with_the_columns_comes_before_folders(tree):
    folder = tree("part1/1.jpg", "part2/2.jpg", "part2/3.jpg")
    (folder / "labels.csv").write_text("image,label\n1.jpg,cat\n2.jpg,dog\n3.jpg,cat\n")
    splits = load(folder)
    assert labels(splits.by_role["train"]) == ["cat", "dog", "cat"] and splits.where == {"train": "labels.csv"}
    (folder / "labels.csv").write_text("something,else\n1,2\n")
    assert set(labels(load(folder).by_role["train"])) == {"part1", "part2"}


def test_flat_pictures_with_several_tables_name_them(tree):
    folder = tree("train/1.jpg")
    for name in ("labels.csv", "more.csv"):
        (folder / name).write_text("id,breed\n1,a\n")
    with pytest.raises(DataError, match=r"one folder per class.*labels\.csv, more\.csv"):
        load(folder)


def test_a_split_that_the_table_does_not_name_is_said(tree):
    folder = tree("train/1.jpg", "train/2.jpg", "test/3.jpg")
    (folder / "labels.csv").write_text("image,label\n1.jpg,a\n2.jpg,b\n")
    splits = load(folder)
    assert list(splits.by_role) == ["train"]
    assert any("not used" in note and "test" in note and "names no file" in note for note in splits.notes)


# --- labels beside pictures (WebDataset) -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "content", "label"),
    [
        (".cls", "3", "3"),
        (".cls", "cat\n", "cat"),
        (".json", json.dumps({"label": "cat", "x": 1}), "cat"),
        (".json", json.dumps({"cls": 2}), "2"),
        (".json", json.dumps(["a", "b"]), ["a", "b"]),
    ],
)
def test_labels_beside_pictures(tree, ending, content, label):
    folder = tree("train/0.jpg", "train/1.seg.png", "train/2.jpg")
    for number in (0, 1):
        (folder / "train" / f"{number}{ending}").write_text(content)
    splits = load(folder)
    assert splits.by_role["train"]["label"][:] == [label, label]
    notes = " ".join(splits.notes)
    assert "labels of 2 pictures" in notes and "1 picture without a label left out: 2.jpg" in notes


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", ["cannot be read"]), ('{"lable": "a"}', ["no key 'label'", "did you mean"]), ("null", ["not a label"])],
)
def test_a_bad_label_names_its_file(tree, content, words):
    folder = tree("0.jpg")
    (folder / "0.json").write_text(content)
    with pytest.raises(DataError) as caught:
        load(folder)
    assert "0.json" in str(caught.value) and all(word in str(caught.value) for word in words)


def test_annotations_in_class_folders_are_not_labels(tree):
    folder = tree("cat/1.jpg", "dog/1.jpg")
    (folder / "cat" / "1.json").write_text('{"label": "tail"}')
    table, notes = read_image_folder(folder, "image", "label")
    assert labels(table) == ["cat", "dog"] and "1.json" in notes[0]


def test_listing_is_sorted_and_knows_hidden_folders(tree):
    folder = tree("b/2.jpg", "a/1.jpg", ".cache/3.jpg", "a/x.txt")
    listing = list_pictures(folder)
    assert [path.name for path in listing.pictures] == ["1.jpg", "2.jpg"]
    assert [path.name for path in listing.others] == ["x.txt"]


# --- other names of splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("Train", "Valid", "Test"), ("Training", "VAL", "Testing"), ("TRAIN", "Dev", "test")],
)
def test_splits_in_another_letter_case(tree, train, validation, test):
    names = [f"{split}/{label}/1.jpg" for split in (train, validation, test) for label in "ab"]
    splits = load(tree(*names))
    assert {role: len(split) for role, split in splits.by_role.items()} == {"train": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "TESTING")])
def test_one_table_above_splits_in_another_letter_case(tree, train, test):
    folder = tree(f"{train}/1.jpg", f"{train}/2.jpg", f"{test}/1.jpg")
    (folder / "metadata.csv").write_text(f"file_name,label\n{train}/1.jpg,a\n{train}/2.jpg,b\n{test}/1.jpg,a\n")
    splits = load(folder)
    assert {role: len(split) for role, split in splits.by_role.items()} == {"train": 2, "test": 1}


def test_one_table_above_other_folders_says_that_all_is_train(tree):
    folder = tree("north/1.jpg", "south/2.jpg")
    (folder / "metadata.csv").write_text("file_name,label\nnorth/1.jpg,a\nsouth/2.jpg,b\n")
    splits = load(folder)
    assert len(splits.by_role["train"]) == 2
    assert any("all rows are train" in note and "north, south" in note for note in splits.notes)


def test_folders_of_splits_that_hold_one_folder_more(tree):
    folder = tree(*(f"{split}/{split}/{label}/1.jpg" for split in ("seg_train", "seg_test") for label in "ab"))
    splits = load(folder, train_split="seg_train", test_split="seg_test")
    assert all(set(labels(split)) == {"a", "b"} for split in splits.by_role.values())


@pytest.mark.parametrize("column", ["id", "filename"])
def test_a_table_beside_one_folder_of_pictures_is_meant(tree, column):
    folder = tree("images/1.jpg", "images/2.jpg")
    (folder / "labels.csv").write_text(f"{column},label\n1,a\n2,b\n")
    with pytest.raises(DataError, match=rf"labels\.csv: no column 'image' \(data\.image_column\).*{column}"):
        load(folder)


def test_pictures_of_validation_without_classes_have_a_remedy(tree):
    with pytest.raises(DataError, match=r"val.*validation_split: null"):
        load(tree("train/a/1.jpg", "train/b/1.jpg", "val/1.jpg"))


# --- a column of splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "names"), [("split", ("train", "val", "test")), ("Set", ("TRAIN", "Dev", "Testing"))]
)
def test_a_column_may_say_the_split_of_each_row(tree, column, names):
    folder = tree(*(f"{number}.jpg" for number in range(6)))
    rows = [f"{number}.jpg,{'ab'[number % 2]},{names[number // 2]}" for number in range(6)]
    (folder / "data.csv").write_text("\n".join([f"image,label,{column}", *rows]))
    splits = load(folder / "data.csv")
    assert {role: split["row_id"] for role, split in splits.by_role.items()} == {
        "train": [0, 1],
        "validation": [2, 3],
        "test": [4, 5],
    }
    assert any(f"column '{column}'" in note and f"{names[1]} 2" in note for note in splits.notes)


@pytest.mark.parametrize("values", [("one", "two"), ("train", "train"), ("test", "val")])
def test_a_column_that_does_not_name_splits_is_an_ordinary_one(tree, values):
    folder = tree("0.jpg", "1.jpg")
    (folder / "data.csv").write_text(f"image,label,split\n0.jpg,a,{values[0]}\n1.jpg,b,{values[1]}\n")
    splits = load(folder / "data.csv")
    assert list(splits.by_role) == ["train"] and len(splits.by_role["train"]) == 2


def test_a_column_of_labels_is_no_column_of_splits(tree):
    folder = tree("0.jpg", "1.jpg")
    (folder / "data.csv").write_text("image,label,split\n0.jpg,a,train\n1.jpg,b,test\n")
    with_labels = {"data.image_column": "image", "data.label_column": "split"}
    section = DataSection(name=str(folder / "data.csv"), label_column="split")
    splits = load_splits(section, resolve(str(folder / "data.csv")), with_labels)
    assert list(splits.by_role) == ["train"]
