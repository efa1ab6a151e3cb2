"""A fingerprint follows what is in the rows, and nothing else."""

from __future__ import annotations

import os
import shutil

from datasets import Dataset, concatenate_datasets

from sft_hf.data.fingerprint import fingerprint

ROWS = {"text": ["a", "b b", "c\n", "ü"], "label": ["1", "2", "1", "2"], "row_id": [0, 1, 2, 3]}


def of(rows):
    return fingerprint(Dataset.from_dict(rows), ["text", "label"])


def test_any_change_of_a_row_is_seen():
    plain = of(ROWS)
    changes = [
        {**ROWS, "text": ["a", "b b", "c\n", "u"]},
        {**ROWS, "text": ["b b", "a", "c\n", "ü"]},
        {**ROWS, "label": ["1", "2", "2", "2"]},
        {**ROWS, "label": [1, 2, 1, 2]},
        {**ROWS, "row_id": [0, 1, 2, 4]},
        {name: values[:3] for name, values in ROWS.items()},
        {**ROWS, "text": ["a'", "b b", "c\n", "ü"]},
    ]
    found = [of(change) for change in changes]
    assert plain not in found
    assert len(set(found)) == len(found)


def test_how_rows_are_stored_is_not():
    whole = Dataset.from_dict(ROWS)
    parts = concatenate_datasets([whole.select([0, 1]), whole.select([2, 3])])
    selected = Dataset.from_dict({name: [values[0], *values] for name, values in ROWS.items()}).select([1, 2, 3, 4])
    other_columns = whole.add_column("more", [0, 0, 0, 0])
    for other in (parts, selected, other_columns, whole.with_format("numpy")):
        assert fingerprint(other, ["text", "label"]) == of(ROWS)


def test_files_count_by_content_and_not_by_place(tmp_path):
    folder = tmp_path / "here" / "data"
    folder.mkdir(parents=True)
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(name.encode() * 100)

    def here(folder):
        rows = {"audio": [str(folder / "a.wav"), str(folder / "b.wav")], "row_id": [0, 1]}
        return fingerprint(Dataset.from_dict(rows), ["audio"], files=["audio"])

    plain = here(folder)
    shutil.copytree(folder, tmp_path / "there" / "data")
    assert here(tmp_path / "there" / "data") == plain
    (folder / "b.wav").write_bytes(b"b.wax" * 100)
    assert here(folder) != plain


def test_rows_that_name_no_file_count_by_their_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    names = [str(tmp_path / "pipe"), "/dev/zero", "nul\x00byte", str(tmp_path), "x" * 5000]
    found = {fingerprint(Dataset.from_dict({"audio": [name]}), ["audio"], files=["audio"]) for name in names}
    assert len(found) == len(names)
