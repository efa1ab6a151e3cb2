"""Splits of files and folders: by name, in shards, as streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from loaded_splits import load, refusal, section

from sft_hf.core.errors import DataError
from sft_hf.data.loading.loading import require_columns

CSV = "text,label\na,x\nb,y\n"

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def local(path: Path) -> SimpleNamespace:
    return SimpleNamespace(kind="local", path=path, name=str(path), revision=None, served_by=None)


def folder(path: Path, *names: str, **contents: str) -> Path:
    """Files whose only text is their own name, so that a test sees which one was read."""
    for name in names:
        if name.endswith(".jsonl"):
            (path / name).write_text(json.dumps({"text": name, "label": "x"}))
        elif name.endswith(".parquet"):
            Dataset.from_dict({"text": [name], "label": ["x"]}).to_parquet(path / name)
        else:
            mark = "," if name.endswith(".csv") else "\t"
            (path / name).write_text(f"text{mark}label\n{name}{mark}x\n")
    return path


def texts(splits) -> dict[str, list[str]]:
    return {role: list(data["text"]) for role, data in splits.by_role.items()}


# --- one file ------------------------------------------------------------------------------------------------


def test_a_file_is_train(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(CSV)
    splits = load(section(), local(path))
    assert splits.where == {"train": "test.csv"} and splits.notes == []
    assert splits.by_role["train"].to_list() == [
        {"text": "a", "label": "x", "row_id": 0},
        {"text": "b", "label": "y", "row_id": 1},
    ]
    assert splits.by_role["train"].cache_files == []
    assert "picks files of a folder" in refusal(section(data_files={"train": "a.csv"}), local(path))


def test_row_id_travels_along_and_replaces_the_files_own(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("row_id,text,label\n7,a,x\n8,b,y\n9,c,x\n")
    train = load(section(), local(path)).by_role["train"]
    assert train["row_id"][:] == [0, 1, 2]
    assert train.select([2, 0])["row_id"][:] == [2, 0] and train.filter(lambda row: row["text"] == "b")["row_id"][
        :
    ] == [1]
    assert "no column 'row_id'" in refusal(section(text_column="row_id"), local(path))


def test_csv_options_reach_the_reader(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text;label\nstring;d\n"a;x\n')
    options = {"delimiter": ";", "quote_char": "", "skip_lines": 1}
    expected = [{"text": '"a', "label": "x"}]
    assert load(section(**options), local(path)).by_role["train"].remove_columns("row_id").to_list() == expected
    assert list(load(section(streaming=True, **options), local(path)).by_role["train"]) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"label_column": "labl"},
            "a.csv: no column 'labl' (data.label_column); did you mean label? Valid: text, label",
        ),
        ({"text_column": "sentence"}, "a.csv: no column 'sentence' (data.text_column); Valid: text, label"),
        ({"text_pair_column": "text2"}, "a.csv: no column 'text2' (data.text_pair_column); did you mean text?"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_missing_columns(tmp_path, changes, expected, streaming):
    (tmp_path / "a.csv").write_text(CSV)
    assert expected in refusal(section(streaming=streaming, **changes), local(tmp_path / "a.csv"))


def test_require_columns_of_a_stream_without_features(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}')
    stream = load(section(streaming=True), local(tmp_path / "a.jsonl")).by_role["train"]
    assert stream.column_names is None
    require_columns(stream, {"data.text_column": "text"}, "a.jsonl")
    with pytest.raises(DataError, match="did you mean text"):
        require_columns(stream, {"data.text_column": "txt"}, "a.jsonl")


# --- folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation.csv", "valid.jsonl", "val.tsv", "dev.parquet"])
def test_files_are_found_by_name(tmp_path, name):
    folder(tmp_path, "train.csv", "test.jsonl", name, "other.csv", ".hidden.csv")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "train").mkdir()
    splits = load(section(), local(tmp_path))
    assert texts(splits) == {"train": ["train.csv"], "validation": [name], "test": ["test.jsonl"]}
    assert splits.where == {"train": "train.csv", "validation": name, "test": "test.jsonl"}
    assert all(data["row_id"][:] == [0] for data in splits.by_role.values())


def test_default_splits_may_be_absent_and_null_means_unused(tmp_path):
    folder(tmp_path, "train.csv", "test.csv", "dev.csv")
    assert list(texts(load(section(test_split=None), local(tmp_path)))) == ["train", "validation"]
    (tmp_path / "dev.csv").unlink()
    assert list(texts(load(section(), local(tmp_path)))) == ["train", "test"]
    assert "no split 'extra' (data.test_split)" in refusal(section(test_split="extra"), local(tmp_path))
    assert "no split 'dev' (data.validation_split)" in refusal(section(validation_split="dev"), local(tmp_path))


def test_an_exact_name_comes_before_its_aliases(tmp_path):
    folder(tmp_path, "train.csv", "validation.csv", "dev.csv")
    assert texts(load(section(), local(tmp_path)))["validation"] == ["validation.csv"]
    chosen = texts(load(section(test_split="dev"), local(tmp_path)))
    assert chosen == {"train": ["train.csv"], "validation": ["validation.csv"], "test": ["dev.csv"]}


def test_one_split_serves_one_role(tmp_path):
    folder(tmp_path, "train.csv", "validation.csv")
    splits = load(section(test_split="validation"), local(tmp_path))
    assert texts(splits) == {"train": ["train.csv"], "test": ["validation.csv"]}
    assert splits.notes == ["validation: not the split 'validation', which data.test_split makes test"]
    both = section(test_split="dev", validation_split="val")
    assert "data.validation_split and data.test_split both name the split 'validation'" in refusal(
        both, local(tmp_path)
    )
    assert "data.train_split and data.test_split both" in refusal(section(test_split="train"), local(tmp_path))


def test_a_folder_without_train_says_what_it_holds(tmp_path):
    folder(tmp_path, "tarin.csv")
    (tmp_path / "notes.md").write_text("")
    message = refusal(section(), local(tmp_path))
    assert "no split 'train' (data.train_split); did you mean tarin?" in message
    assert ".jsonl" in message and "the folder holds: notes.md, tarin.csv" in message


def test_rival_files(tmp_path):
    folder(tmp_path, "train.csv", "train.jsonl")
    assert "several files for the split 'train' (train.csv, train.jsonl)" in refusal(section(), local(tmp_path))


def test_shards_are_one_split_in_order(tmp_path):
    names = [f"train-{index}-of-11.parquet" for index in range(11)]
    folder(tmp_path, *names, "test-00000-of-00001.parquet")
    splits = load(section(), local(tmp_path))
    assert texts(splits) == {"train": names, "test": ["test-00000-of-00001.parquet"]}
    assert splits.by_role["train"]["row_id"][:] == list(range(11))
    assert splits.where["train"] == "train-0-of-11.parquet and 10 more"
    (tmp_path / names[3]).unlink()
    assert "shards of 'train' are missing or mixed" in refusal(section(), local(tmp_path))
    folder(tmp_path, "train.parquet")
    assert "several files for the split 'train'" in refusal(section(), local(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_a_split_must_fit_together(tmp_path, streaming):
    folder(tmp_path, "a.csv")
    (tmp_path / "b.csv").write_text("text,tag\na,x\n")
    message = refusal(section(data_files={"train": "*.csv"}, streaming=streaming), local(tmp_path))
    assert "a.csv" in message and "columns" in message


def test_parts_whose_types_differ(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "label": ["x"]}')
    message = refusal(section(data_files={"train": "*.jsonl"}), local(tmp_path))
    assert "a.jsonl and its other parts do not fit together" in message


def test_data_files(tmp_path):
    folder(tmp_path, "one.csv", "two.tsv", "part-1.csv", "part-2.csv", "[odd].csv")
    (tmp_path / "sub").mkdir()
    folder(tmp_path / "sub", "three.jsonl")
    mapping = {"train": "part-*.csv", "dev": "sub/three.jsonl", "test": "[odd].csv", "extra": "nowhere.csv"}
    splits = load(section(data_files=mapping), local(tmp_path))
    assert texts(splits) == {
        "train": ["part-1.csv", "part-2.csv"],
        "validation": ["three.jsonl"],
        "test": ["[odd].csv"],
    }
    assert splits.notes == ["not used: split extra"]
    chosen = section(data_files={"one": "one.csv", "two": "two.tsv"}, train_split="two", test_split="one")
    assert texts(load(chosen, local(tmp_path))) == {"train": ["two.tsv"], "test": ["one.csv"]}


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"train": "trian.csv"}, "data.data_files: train: no file 'trian.csv'"),
        ({"train": "trian.csv"}, "did you mean train.csv?"),
        ({"train": "*.tsv"}, "no file '*.tsv'"),
        ({"train": "a**b"}, "no file 'a**b'"),
        ({"train": ""}, "is not inside"),
        ({"train": "../data/train.csv"}, "is not inside"),
        ({"train": "/etc/passwd"}, "is not inside"),
        ({"trainings": "train.csv"}, "data.data_files: no split 'train' (data.train_split); did you mean trainings?"),
    ],
)
def test_data_files_that_cannot_be(tmp_path, mapping, expected):
    folder(tmp_path, "train.csv")
    assert expected in refusal(section(data_files=mapping), local(tmp_path))


def test_what_save_to_disk_wrote(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    train = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict(train=train.with_format("numpy"), dev=train.select([1]), more=train).save_to_disk(tmp_path / "dict")
    splits = load(section(), local(tmp_path / "dict"))
    assert splits.where == {"train": "dict [train]", "validation": "dict [dev]"}
    assert splits.notes == ["not used: split more"]
    assert splits.by_role["train"][0] == {"text": "a", "label": 1, "row_id": 0}
    assert splits.by_role["validation"].features["label"] == features["label"]
    train.save_to_disk(tmp_path / "one")
    assert list(load(section(), local(tmp_path / "one")).by_role) == ["train"]
    stream = load(section(streaming=True), local(tmp_path / "dict")).by_role
    assert isinstance(stream["train"], IterableDataset) and isinstance(stream["validation"], Dataset)
    (tmp_path / "one" / "state.json").write_text("{")
    assert "what save_to_disk wrote here cannot be read" in refusal(section(), local(tmp_path / "one"))


# --- streaming -----------------------------------------------------------------------------------------------


def test_train_is_streamed_and_the_rest_is_read(tmp_path):
    folder(tmp_path, "train-0-of-2.csv", "train-1-of-2.csv", "test.csv")
    splits = load(section(streaming=True), local(tmp_path))
    stream, test = splits.by_role["train"], splits.by_role["test"]
    assert isinstance(stream, IterableDataset) and isinstance(test, Dataset) and test["row_id"][:] == [0]
    expected = [{"text": f"train-{index}-of-2.csv", "label": "x"} for index in range(2)]
    assert list(stream) == expected and list(stream) == expected, "it can be read again"
    assert stream.column_names == ["text", "label"]


def test_streamed_parquet_keeps_class_names(tmp_path):
    feature = ClassLabel(names=["x", "y"])
    features = Features({"text": Value("string"), "label": feature})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(tmp_path / "a.parquet")
    stream = load(section(streaming=True), local(tmp_path / "a.parquet")).by_role["train"]
    assert stream.features["label"] == feature and list(stream) == [{"text": "a", "label": 1}]


def test_a_bad_row_of_a_stream_is_named_when_it_comes(tmp_path):
    (tmp_path / "a.csv").write_text(CSV + "c\n")
    stream = load(section(streaming=True), local(tmp_path / "a.csv")).by_role["train"]
    with pytest.raises(DataError, match="line 4 has 1 field"):
        list(stream)


# --- imports --------------------------------------------------------------------------------------------------


def test_reading_data_imports_neither_torch_nor_transformers():
    code = (
        "import sys, sft_hf.data.splits\n"
        "loaded = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
