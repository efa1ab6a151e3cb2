"""Cells that name files become paths, however tables are written; what is guessed is said."""

from __future__ import annotations

import unicodedata

import pytest
from datasets import Dataset

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.core.sources.sources import resolve
from sft_hf.data.loading.file_paths import FilePaths, resolved_paths
from sft_hf.data.loading.loading import load_splits

IMAGES = {"data.image_column": "image", "data.label_column": "label"}
SPEECH = {"data.audio_column": "audio", "data.transcription_column": "transcription"}


@pytest.fixture
def files(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path

    return make


def load(path, columns, **settings):
    return load_splits(
        DataSection(name=str(path), **settings), resolve(str(path), what="data set", key="data"), columns
    )


@pytest.mark.parametrize(
    ("present", "cell", "found", "said"),
    [
        ("a/1.jpg", "a/1.jpg", "a/1.jpg", None),
        ("a/1.jpg", "a\\1.jpg", "a/1.jpg", "Windows"),
        ("deep/er/x y.png", "deep\\er\\x y.png", "deep/er/x y.png", "Windows"),
        ("a/1.jpg", "C:\\Users\\me\\set\\a\\1.jpg", "a/1.jpg", "another machine"),
        ("a/1.jpg", "/content/drive/set/a/1.jpg", "a/1.jpg", "another machine"),
        ("labels/1.jpg", "1.jpg", "labels/1.jpg", "called like the table"),
        ("labels/1.jpg", "1", "labels/1.jpg", "file name"),
        ("train/0a.jpg", "0a", "train/0a.jpg", "file name"),
        ("wavs/LJ-1.wav", "LJ-1", "wavs/LJ-1.wav", "file name"),
        ("x/train/7.png", "train/7", "x/train/7.png", "file name"),
        ("IMG_1.JPG", "img_1.jpg", "IMG_1.JPG", "file name"),
        (unicodedata.normalize("NFD", "Café.png"), "Café.png", unicodedata.normalize("NFD", "Café.png"), "file name"),
        ("train/7.jpg", 7, "train/7.jpg", "file name"),
    ],
)
def test_a_cell_finds_its_file(files, present, cell, found, said):
    folder = files(present, "labels.csv")
    paths = FilePaths(folder / "labels.csv")
    assert paths.path(cell) == str(folder / found)
    assert (said is None and paths.notes() == []) or (len(paths.notes()) == 1 and said in paths.notes()[0])


@pytest.mark.parametrize("cell", [None, "", "  ", "https://example.org/1.jpg", b"bytes"])
def test_what_is_no_path_stays(files, cell):
    assert FilePaths(files("1.jpg") / "t.csv").path(cell) == cell


@pytest.mark.parametrize("cell", ["2.jpg", "other/1.jpg", "../1.jpg", "1.png"])
def test_a_path_that_leads_nowhere_is_not_guessed(files, cell):
    paths = FilePaths(files("a/1.jpg") / "t.csv")
    assert paths.path(cell).endswith(cell)
    assert paths.notes() == []


def test_several_files_that_fit_are_refused(files):
    folder = files("train/7.jpg", "test/7.jpg")
    with pytest.raises(DataError, match=r"t\.csv row 3: '7' may be test/7\.jpg, train/7\.jpg.*data\.file_prefix"):
        FilePaths(folder / "t.csv").path("7", 3)


def test_several_cells_that_would_be_one_file_are_refused(files):
    paths = FilePaths(files("1.jpg") / "t.csv")
    assert paths.path("/far/a/1.jpg", 0) == paths.path("/far/a/1.jpg", 1)
    with pytest.raises(DataError, match=r"row 2: '/far/b/1\.jpg' and '/far/a/1\.jpg' would both"):
        paths.path("/far/b/1.jpg", 2)


def test_the_table_before_its_transcripts(files):
    folder = files("train/7.jpg", "train/7.txt", "train/7.csv")
    assert FilePaths(folder / "t.csv").path("7") == str(folder / "train" / "7.jpg")


def test_prefix_and_suffix_are_added_and_nothing_else_is_guessed(files):
    folder = files("clips/a.mp3", "other/b.mp3")
    paths = FilePaths(folder / "t.csv", "clips/", ".mp3")
    assert paths.path("a") == str(folder / "clips" / "a.mp3")
    assert paths.path("b") == str(folder / "clips" / "b.mp3")  # is not there; the reader says so
    assert paths.notes() == []
    windows = FilePaths(folder / "t.csv", "clips\\")
    assert windows.path("a.mp3") == str(folder / "clips" / "a.mp3")


def test_numbers_of_a_table_are_ids(files):
    folder = files("train/7.jpg", "train/8.jpg")
    table = resolved_paths(Dataset.from_dict({"image": [7, 8]}), ["image"], FilePaths(folder / "t.jsonl"))
    assert table["image"][:] == [str(folder / "train" / "7.jpg"), str(folder / "train" / "8.jpg")]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_recipe_completes_paths(files, streaming):
    folder = files("pics/a.jpg", "pics/b.jpg")
    (folder / "t.csv").write_text("image,label\na,x\nb,y\n")
    options = {"file_prefix": "pics/", "file_suffix": ".jpg", "streaming": streaming}
    rows = list(load(folder / "t.csv", IMAGES, **options).by_role["train"])
    assert [row["image"] for row in rows] == [str(folder / "pics" / "a.jpg"), str(folder / "pics" / "b.jpg")]


# --- one table above the folders of the splits ---------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_the_splits_of_one_table_are_the_folders_of_its_files(files, streaming):
    folder = files("train/a.jpg", "train/b.jpg", "test/a.jpg", "val/c.jpg", "more/d.jpg")
    names = ["test/a.jpg", "train/a.jpg", "val/c.jpg", "train/b.jpg", "more/d.jpg"]
    (folder / "metadata.csv").write_text("file_name,label\n" + "".join(f"{name},x\n" for name in names))
    splits = load(folder, IMAGES, streaming=streaming)
    found = {role: [row["image"] for row in split] for role, split in splits.by_role.items()}
    assert found == {
        "train": [str(folder / "train" / "a.jpg"), str(folder / "train" / "b.jpg")],
        "validation": [str(folder / "val" / "c.jpg")],
        "test": [str(folder / "test" / "a.jpg")],
    }
    said = " ".join(splits.notes)
    assert "train 2" in said and "test 1" in said and "not used: split more" in said


def test_names_alone_do_where_no_two_splits_share_one(files):
    folder = files("train/a.wav", "train/b.wav", "test/c.wav")
    (folder / "metadata.csv").write_text("file_name,transcription\na.wav,one\nb.wav,two\nc.wav,three\n")
    splits = load(folder, SPEECH)
    assert {role: split["transcription"][:] for role, split in splits.by_role.items()} == {
        "train": ["one", "two"],
        "test": ["three"],
    }
    files("test/a.wav")
    with pytest.raises(DataError, match=r"'a\.wav' may be test/a\.wav, train/a\.wav"):
        load(folder, SPEECH)


@pytest.mark.parametrize("name", ["metadata.tsv", "labels.csv", "Transcripts.csv"])
def test_a_table_beside_files_of_no_split_is_train(files, name):
    folder = files("clips/a.wav", "clips/b.wav")
    mark = "\t" if name.endswith("tsv") else ","
    (folder / name).write_text(f"audio{mark}transcription\nclips/a.wav{mark}one\nclips/b.wav{mark}two\n")
    splits = load(folder, SPEECH)
    assert list(splits.by_role) == ["train"] and splits.where["train"].endswith(name)


def test_a_table_of_paths_to_the_files_of_test_alone_is_refused(files):
    folder = files("test/a.jpg")
    (folder / "metadata.csv").write_text("file_name,label\ntest/a.jpg,x\n")
    with pytest.raises(DataError, match=r"metadata\.csv.*no split 'train'"):
        load(folder, IMAGES)
