"""Held-out splits that share no speaker with train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.data.groups import refuse_crossing, speaker_findings, split_by_groups
from sft_hf.data.loading.roles import Splits
from sft_hf.data.splits import fill_missing_splits


def section(**changes):
    return DataSection(name="x", **changes)


def rows(speakers, **columns):
    count = len(speakers)
    return Dataset.from_dict(
        {"speaker": speakers, "label": [i % 2 for i in range(count)], "n": list(range(count)), **columns}
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("names", [[f"s{number % 13}" for number in range(130)], [i // 7 for i in range(100)]])
def test_a_value_is_on_one_side_and_about_as_many_rows_are_held_out_as_wanted(names, seed):
    kept, held = split_by_groups(names, None, 20, (seed, 1))
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(names)))
    assert not {names[row] for row in kept} & {names[row] for row in held}
    assert abs(len(held) - 20) <= 10
    again = split_by_groups(names, None, 20, (seed, 1))
    assert np.array_equal(held, again[1])


def test_train_keeps_a_row_of_each_label():
    names = ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    labels = ["rare"] * 5 + ["common"] * 10
    for seed in range(10):
        kept, held = split_by_groups(names, labels, 5, seed)
        assert {labels[row] for row in kept} == {"rare", "common"} and len(held) == 5


def test_one_value_cannot_be_divided_and_rows_without_one_stand_for_themselves():
    assert len(split_by_groups(["a"] * 9, None, 3, 0)[1]) == 0
    _, held = split_by_groups([None, "", "a", "a", None, " "] * 5, None, 6, 0)
    assert 4 <= len(held) <= 8 or len(held) == 10


def test_splits_are_held_out_by_speaker(caplog):
    speakers = [f"s{number % 10}" for number in range(100)]
    splits = Splits({"train": rows(speakers)}, {"train": "train.csv"})
    filled = fill_missing_splits(splits, section(split_by="speaker", test_fraction=0.2))
    found = [set(filled.by_role[role]["speaker"]) for role in ("train", "validation", "test")]
    assert [len(part) for part in found] == [7, 1, 2]
    assert len(set.union(*found)) == 10
    assert any("'speaker'" in note and "2 values" in note for note in filled.notes)
    unequal = Splits({"train": rows(["a"] * 51 + ["b"] * 9)}, {"train": "train.csv"})
    notes = fill_missing_splits(unequal, section(split_by="speaker", validation_fraction=0.0)).notes
    assert any("9 rows" in note and "15 %" in note and "10 %" in note for note in notes), notes
    with pytest.raises(DataError, match="no value of 'speaker'"):
        fill_missing_splits(replace(splits, by_role={"train": rows(["a"] * 100)}), section(split_by="speaker"))


def test_given_splits_that_share_speakers_are_an_error_or_a_warning():
    shared = {"train": rows(["a", "b", "c"]), "test": rows(["c", "d", "c"])}
    with pytest.raises(DataError, match=r"1 values of 'speaker' are in train and in test \(2 rows of test\): 'c'"):
        refuse_crossing(shared, "speaker")
    (finding,) = speaker_findings(shared, None)
    assert finding.level == "warning" and "data.split_by: speaker" in finding.text
    assert not speaker_findings(shared, "speaker")
    assert not speaker_findings({"train": rows(["a", None, ""]), "test": rows(["b", None, ""])}, None)
    renamed = {role: split.rename_column("speaker", "Client_ID") for role, split in shared.items()}
    assert len(speaker_findings(renamed, None)) == 1
