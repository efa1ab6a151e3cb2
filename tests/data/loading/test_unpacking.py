"""Archives are unpacked once into the cache; members cannot escape, bombs are bounded, damage is named."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest
from PIL import Image

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.core.sources.sources import resolve
from sft_hf.data.loading import unpacking
from sft_hf.data.loading.loading import load_splits

IMAGES = {"data.image_column": "image", "data.label_column": "label"}
SPEECH = {"data.audio_column": "audio", "data.transcription_column": "transcription"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = picture()


def pack(path, files):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        modes = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}
        with tarfile.open(path, modes[path.suffix]) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def load(path, columns=IMAGES, **settings):
    section = DataSection(name=str(path), **settings)
    return load_splits(section, resolve(str(path), what="data set", key="data"), columns)


CLASSES = {f"{name}/{number}.png": PNG for name in ("cat", "dog") for number in range(2)}


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "pets.tgz", "pets.tar.xz", "pets.tar.bz2"])
def test_an_archive_of_class_folders(tmp_path, cache, name):
    archive = pack(tmp_path / name, {f"pets/{path}": content for path, content in CLASSES.items()})
    splits = load(archive)
    train = splits.by_role["train"]
    assert len(train) == 4 and train.features["label"].names == ["cat", "dog"]
    assert all(path.startswith(str(cache / "unpacked")) for path in train["image"])
    assert "4 files" in splits.notes[0] and str(cache) in splits.notes[0]
    again = load(archive)
    assert again.by_role["train"]["image"][:] == train["image"][:] and "earlier" in again.notes[0]


def test_a_changed_archive_is_unpacked_again(tmp_path):
    load(pack(tmp_path / "a.zip", CLASSES))
    splits = load(pack(tmp_path / "a.zip", CLASSES | {"cat/new.png": PNG}))
    assert len(splits.by_role["train"]) == 5


def test_an_archive_with_a_table(tmp_path):
    table = b"image,label\n0,a\n1,b\n"
    splits = load(pack(tmp_path / "a.zip", {"img/0.png": PNG, "img/1.png": PNG, "labels.csv": table}))
    assert splits.by_role["train"]["label"][:] == ["a", "b"]


def test_an_archive_of_recordings(tmp_path):
    files = {"train/0.wav": b"x", "train/1.wav": b"x", "test/2.wav": b"x"}
    table = b"file_name,transcription\ntrain/0.wav,one\ntrain/1.wav,two\ntest/2.wav,three\n"
    splits = load(pack(tmp_path / "a.tar.gz", files | {"metadata.csv": table}), SPEECH)
    assert {role: split["transcription"][:] for role, split in splits.by_role.items()} == {
        "train": ["one", "two"],
        "test": ["three"],
    }


def test_archives_of_splits_beside_their_table(tmp_path):
    pack(tmp_path / "set" / "train.zip", {"train/a.png": PNG, "train/b.png": PNG})
    pack(tmp_path / "set" / "test.zip", {"c.png": PNG})
    (tmp_path / "set" / "labels.csv").write_text("image,label\na,x\nb,y\nc,x\n")
    splits = load(tmp_path / "set")
    assert {role: split["label"][:] for role, split in splits.by_role.items()} == {"train": ["x", "y"], "test": ["x"]}


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_webdataset_shards(tmp_path, ending):
    label = b"7" if ending == "cls" else b'{"label": 7}'
    for shard in ("train-000000.tar", "train-000001.tar", "test-000000.tar"):
        pack(tmp_path / "set" / shard, {"00.png": PNG, f"00.{ending}": label, "01.png": PNG, f"01.{ending}": b"8"})
    splits = load(tmp_path / "set")
    assert {role: split["label"][:] for role, split in splits.by_role.items()} == {
        "train": ["7", "8", "7", "8"],
        "test": ["7", "8"],
    }


@pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "x/../../a.png", "C:\\a.png", "..\\a.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside(tmp_path, cache, name, kind):
    with pytest.raises(DataError, match="outside"):
        load(pack(tmp_path / f"a.{kind}", {"cat/1.png": PNG, name: PNG}))
    assert not (tmp_path / "a.png").exists() and not list(cache.rglob("a.png"))


def test_links_are_not_followed(tmp_path):
    path = tmp_path / "a.tar"
    pack(path, CLASSES)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"cat/link{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert len(load(path).by_role["train"]) == 4


def test_bombs_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "SLACK", 1000)
    for name in ("a.zip", "a.tar.gz"):
        with pytest.raises(DataError, match="unpacks to more than"):
            load(pack(tmp_path / name, {"cat/1.png": bytes(10**6)}))
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="unpacks to more than"):
        load(pack(tmp_path / "b.tar", CLASSES))


@pytest.mark.parametrize(
    ("name", "cut", "words"),
    [
        ("a.zip", lambda content: content[:60], ["a.zip", "damaged"]),
        ("a.tar.gz", lambda content: content[:-20], ["a.tar.gz", "damaged"]),
        ("a.tar", lambda content: b"no archive at all", ["a.tar", "damaged"]),
        ("a.rar", lambda content: b"Rar!", ["unpack it"]),
        ("a.7z", lambda content: b"7z", ["unpack it"]),
    ],
)
def test_damage_is_named(tmp_path, cache, name, cut, words):
    path = tmp_path / name
    content = b"" if path.suffix in (".rar", ".7z") else pack(path, CLASSES).read_bytes()
    path.write_bytes(cut(content))
    with pytest.raises(DataError) as caught:
        load(path)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert not list(cache.rglob("*.png"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_in_the_only_folder(tmp_path, packed):
    files = {"set/img/0.png": PNG, "set/img/1.png": PNG, "set/labels.csv": b"image,label\n0,a\n1,b\n"}
    path = tmp_path / "a.zip"
    pack(path, files)
    if not packed:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "plain")
        path = tmp_path / "plain"
    splits = load(path)
    assert splits.by_role["train"]["label"][:] == ["a", "b"]
    assert any("read from set in it" in note for note in splits.notes)


def test_a_packed_table_beside_packed_pictures(tmp_path):
    pack(tmp_path / "set" / "images.zip", {"a.png": PNG, "b.png": PNG})
    pack(tmp_path / "set" / "train.csv.zip", {"train.csv": b"image,label\na,x\nb,y\n"})
    splits = load(tmp_path / "set")
    assert splits.by_role["train"]["label"][:] == ["x", "y"]


@pytest.mark.parametrize("name", ["set/one.csv", "one.csv"])
def test_one_of_several_packed_tables_is_named(tmp_path, name):
    table = b"image,label\n0,a\n"
    files = {"set/img/0.png": PNG, "set/one.csv": table, "set/two.csv": b"image,label\n0,b\n"}
    path = pack(tmp_path / "a.zip", files)
    assert load(path, data_files={"train": name}).by_role["train"]["label"][:] == ["a"]
