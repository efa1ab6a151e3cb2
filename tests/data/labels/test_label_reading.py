"""What the labels of a data set mean: every form that files have them in, over all splits."""

from __future__ import annotations

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from sft_hf.core.errors import DataError
from sft_hf.core.recipe.recipe import DataSection
from sft_hf.data.labels.label_map import build_label_map, encode_labels
from sft_hf.data.labels.reading import is_unlabelled, read_labels, read_rows
from sft_hf.data.loading.roles import Splits


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp())


def table(label=None, feature=None, **columns) -> Dataset:
    columns = columns or {"label": label}
    count = len(next(iter(columns.values())))
    features = Features({"text": Value("string"), "label": feature}) if feature else None
    data = Dataset.from_dict({"text": [f"text {i}" for i in range(count)], **columns}, features)
    return data.add_column("row_id", list(range(100, 100 + count)))


def read(train, *, kind="auto", test=None, validation=None, **settings):
    """Labels by role, the reading, and what was said."""
    given = {"train": train, "validation": validation, "test": test}
    by_role = {
        role: data if not isinstance(data, list) else table(data) for role, data in given.items() if data is not None
    }
    splits = Splits(by_role, {role: f"{role}.csv" for role in by_role})
    section = DataSection(name="x", **settings)
    after, reading = read_labels(splits, section, kind)
    labels = {role: data.with_format(None)[section.target_column][:] for role, data in after.by_role.items()}
    return labels, reading, after


def refusal(train, **settings) -> str:
    with pytest.raises(DataError) as error:
        read(train, **settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


def said(after: Splits) -> str:
    return "\n".join(finding.text for finding in after.findings)


# --- indicators --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[True, False, True], [False, False, False], [False, True, False]],
        ["[1, 0, 1]", "[0, 0, 0]", "[0, 1, 0]"],
        ["[1. 0. 1.]", "[0. 0. 0.]", "[0. 1. 0.]"],
        ["1 0 1", "0 0 0", "0 1 0"],
        ["1,0,1", "0,0,0", "0,1,0"],
        ["(True, False, True)", "(False, False, False)", "(False, True, False)"],
        ['["1", "0", "1"]', '["0", "0", "0"]', '["0", "1", "0"]'],
    ],
)
def test_vectors_are_indicators_in_every_spelling(values):
    labels, reading, after = read(values)
    assert labels["train"] == [["0", "2"], [], ["1"]] and reading.several
    assert reading.names == ("0", "1", "2"), "all labels in their order, whichever comes first"
    assert "0 or 1 for each of 3 labels" in said(after) and "data.label_names" in said(after)
    assert read(values, label_names=["x", "y", "z"])[0]["train"] == [["x", "z"], [], ["y"]]


def test_names_for_indicators_have_their_length():
    message = refusal([[1, 0, 1], [0, 1, 0]], label_names=["x", "y"])
    assert "3 numbers" in message and "data.label_names has 2 names" in message


@pytest.mark.parametrize("values", [[[3, 17], [0, 4]], [[0], [1], [0, 1]], ["[3 17]", "[4]"], [[0], [1]]])
def test_lists_of_class_numbers_are_no_indicators(values):
    labels, reading, _ = read(values)
    assert reading.form == "lists" and str(labels["train"][0][0]) in ("3", "0")


def test_two_numbers_are_indicators_and_the_recipe_may_say_otherwise():
    assert read([[0, 1], [1, 0], [1, 1]])[0]["train"] == [["1"], ["0"], ["0", "1"]]
    assert read([[0, 1], [1, 0]], label_lists="labels")[1].form == "lists"
    assert read(["0 1", "1 0"], label_lists="indicators")[0]["train"] == [["1"], ["0"]]


def test_vectors_of_several_lengths_are_refused_by_row():
    message = refusal([[1, 0, 1], [0, 1, 0], [0, 1]])
    assert message.startswith("train.csv row 100 ") and "row 102" in message and "data.label_lists: labels" in message
    assert "row 101" in refusal([[1, 0], [2, 0]], label_lists="indicators")
    assert "row 101" in refusal([[1, 0], [-1, 0]]) and read([[1, 0], [-1, 0]], label_lists="labels")
    assert "validation.csv row 101" in refusal([[1, 0], [0, 1]], validation=[[1, 0], [1, 0, 1]])


def test_probabilities_are_refused():
    assert "task.problem_type: regression" in refusal([[0.2, 0.8], [0.5, 0.5]])


def test_one_hot_rows_can_be_single_labels():
    values = [[1, 0, 0], [0, 0, 1]]
    labels, _, after = read(values, label_names=["x", "y", "z"])
    assert labels["train"] == [["x"], ["z"]] and "exactly one label" in said(after)
    single = {"kind": "single_label_classification", "label_names": ["x", "y", "z"]}
    assert read(values, **single)[0]["train"] == ["x", "z"]
    assert "row 101" in refusal([[1, 0, 0], [1, 0, 1]], **single)


def test_one_column_for_each_label():
    columns = {"a": [1, 0, 1], "b": ["yes", "no", "No"], "c": [False, False, True]}
    labels, reading, after = read(table(**columns), label_column=["a", "b", "c"])
    assert labels["train"] == [["a", "b"], [], ["a", "c"]] and reading.names == ("a", "b", "c")
    assert set(after.by_role["train"].column_names) == {"text", "row_id", "a, b, c"}
    assert read(table(**columns), label_column=["a", "b"], label_names=["x", "y"])[0]["train"][0] == ["x", "y"]
    wrong = table(a=[1, 0], b=[0, 3])
    message = refusal(wrong, label_column=["a", "b"])
    assert "row 101" in message and "column 'b' holds 3" in message
    assert "column 'b' is empty" in refusal(table(a=[1, 0], b=[0, None]), label_column=["a", "b"])
    assert DataSection(name="x", label_column=["a"]).label_column == "a"
    with pytest.raises(ValueError, match="'a' twice"):
        DataSection(name="x", label_column=["a", "a"])


def test_several_columns_of_numbers_are_one_list_for_regression():
    labels, reading, _ = read(table(a=[1.5, 2], b=["3", "4.25"]), kind="regression", label_column=["a", "b"])
    assert labels["train"] == [[1.5, 3.0], [2.0, 4.25]] and reading.form == "numbers"
    assert "row 101" in refusal(table(a=[1.5, 2], b=["3", "x"]), kind="regression", label_column=["a", "b"])
    assert read([1.5, 2.5], kind="regression")[0]["train"] == [1.5, 2.5]


# --- lists as text, joined labels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [["['x', 'y']", "[]", "['y']"], ["['x' 'y']", "[]", "['y']"], ['["x", "y"]', "[]", '["y"]']]
)
def test_lists_as_text(values):
    labels, _, after = read(values)
    assert labels["train"] == [["x", "y"], [], ["y"]] and "lists of labels as text" in said(after)
    assert read(values, kind="single_label_classification")[0]["train"] == values


def test_half_a_column_of_lists_is_refused():
    message = refusal(["['x', 'y']", "z"])
    assert "row 101" in message and "single_label_classification" in message
    assert "write a JSON list" in refusal(["[x, y]", "[y]"])
    assert read(["[unk]", "[sep]"])[0]["train"] == ["[unk]", "[sep]"]


@pytest.mark.parametrize(("separator", "sign"), [("comma", ","), ("bar", "|"), ("space", " "), (";", ";"), ("~", "~")])
def test_joined_labels(separator, sign):
    values = [f"x{sign}y", "y", f"z{sign}x{sign}y", "[]"]
    labels, reading, _ = read(values, label_separator=separator)
    assert labels["train"] == [["x", "y"], ["y"], ["z", "x", "y"], []] and reading.several


@pytest.mark.parametrize("sign", [",", ";", "|", ", "])
def test_labels_that_look_joined_are_refused(sign):
    values = [f"x{sign}y", "x", f"y{sign}z", "z"]
    assert "data.label_separator: " in refusal(values)
    assert read(values, kind="single_label_classification")[0]["train"] == values
    assert "data.label_separator" in refusal(values, label_names=["x", "y", "z"])


@pytest.mark.parametrize("sign", [" ", "/", "+"])
def test_labels_that_may_be_joined_are_told(sign):
    values = [f"rust{sign}scab", "scab", f"mildew{sign}rust", "mildew"]
    labels, _, after = read(values)
    assert labels["train"] == values and "data.label_separator: " in said(after)
    assert [finding.level for finding in after.findings] == ["warning"]


@pytest.mark.parametrize(
    "values", [["New York", "New Jersey", "Old Town"], ["a, b", "c, d"], ["card lost", "pin lost"]]
)
def test_names_of_several_words_are_no_combinations(values):
    assert read(values)[2].findings == []


def test_a_separator_that_does_not_fit():
    assert "no label" in said(read(["x", "y"], label_separator="comma")[2])
    assert "remove it" in refusal([["x"], ["y"]], label_separator="comma")
    assert read(["1 0 1", "0 0 1"], label_separator="space")[0]["train"] == [["0", "2"], ["2"]]
    assert "remove one" in refusal(["x", "y"], label_separator="comma", kind="single_label_classification")


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [["10", "2"], [10, 2], [10.0, 2.0], ["10.0", "2.00"]])
def test_whole_numbers_are_compared_by_value(test):
    labels, _, after = read(["10.0", "2.0", "1.0"], test=test)
    assert labels["train"] == ["10", "2", "1"] and "10.0" in said(after)
    names = build_label_map(after.by_role["train"], "label", None, "x")
    assert names.names == ("1", "2", "10")
    assert encode_labels(after.by_role["test"], "label", names, "x", False) == [2, 1]


def test_versions_and_leading_zeros_stay():
    single = {"kind": "single_label_classification"}
    assert read(["1.10", "1.1", "2.0"], **single)[0]["train"] == ["1.10", "1.1", "2.0"]
    assert read(["01", "02"], test=[1, 2])[0] == {"train": ["01", "02"], "test": ["01", "02"]}
    assert read(["01", "1"])[0]["train"] == ["01", "1"]
    assert read(["1.0", "x"])[0]["train"] == ["1.0", "x"]
    assert read(["9" * 400, "1e5"])[0]["train"] == ["9" * 400, "1e5"]


@pytest.mark.parametrize("values", [["3.200", "2.4", "1"], [3.2, 2.0], ["1e-3", "2"], ["-.5", "7."]])
def test_scores_are_refused_with_both_remedies(values):
    message = refusal(values)
    assert "row 100" in message and "task.problem_type: regression" in message
    assert "single_label_classification" in message
    assert len(read(values, kind="single_label_classification")[0]["train"]) == len(values)


def test_numbers_that_may_be_quantities():
    assert "decimal comma" in refusal(["3,2", "2,4", "2,9"])
    assert "regression" in said(read([index * 3 for index in range(25)])[2])
    assert read(list(range(25)))[2].findings == [], "class numbers"


# --- spelling ----------------------------------------------------------------------------------------------------

SPELLINGS = ["food", "Food", "food", "food ", "ice cream", "Ice-Cream", "ice cream"]


def test_similar_labels_are_one_likely_mistake():
    labels, _, after = read(SPELLINGS)
    assert labels["train"] == SPELLINGS
    (finding,) = after.findings
    assert finding.level == "warning" and "data.merge_similar_labels" in finding.text
    assert "'Food' (1 rows)" in finding.text and "'Ice-Cream'" in finding.text


def test_similar_labels_can_be_merged():
    labels, _, after = read(SPELLINGS, test=["FOOD", "ice_cream"], merge_similar_labels=True)
    assert labels["train"] == ["food"] * 4 + ["ice cream"] * 3 and labels["test"] == ["food", "ice cream"]
    assert "as 'food'" in said(after)
    named = read(SPELLINGS, label_names=["FOOD", "Ice cream"], merge_similar_labels=True)[0]["train"]
    assert named == ["FOOD"] * 4 + ["Ice cream"] * 3
    folders = table([0, 1, 1], ClassLabel(names=["Red", "red", "blue"]))
    _, _, after = read(folders, merge_similar_labels=True)
    assert after.by_role["train"].features["label"].names == ["red", "blue"]
    assert after.by_role["train"]["label"][:] == [0, 0, 0]


def test_labels_are_compared_in_one_unicode_form():
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    labels, _, after = read([composed, "x"], test=[decomposed, "x"])
    assert labels["test"] == [composed, "x"] and "NFC" in said(after) and "1 rows" in said(after)
    folders = table([0, 1], ClassLabel(names=[decomposed, "x"]))
    _, _, after = read(folders, test=table([1, 0], ClassLabel(names=["x", composed])))
    names = build_label_map(after.by_role["train"], "label", None, "x")
    assert names.names == (composed, "x")
    assert encode_labels(after.by_role["test"], "label", names, "x", False) == [0, 1]
    assert read([decomposed, "x"], label_names=[decomposed, "x"])[0]["train"] == [composed, "x"]


# --- missing and hidden ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [[-1, -1], ["-1", "-1"], [-1.0, -1.0], [None, None], ["", " "], [float("nan")] * 2])
def test_a_test_without_labels_is_unlabelled(hidden):
    labels, _, after = read(["0", "1"], test=hidden)
    assert labels["test"] == [None, None] and is_unlabelled(after.by_role["test"], "label")
    assert "no labels" in said(after) and not is_unlabelled(after.by_role["train"], "label")


def test_other_ways_to_have_no_labels():
    features = Features({"text": Value("string")})
    bare = Dataset.from_dict({"text": ["x", "y"]}, features).add_column("row_id", [0, 1])
    assert is_unlabelled(read(["a", "b"], test=bare)[2].by_role["test"], "label")
    declared = ClassLabel(names=["a", "b"])
    after = read(table([0, 1], declared), test=table([-1, -1], declared))[2]
    assert is_unlabelled(after.by_role["test"], "label") and after.by_role["train"].features["label"] == declared
    assert read([[1, 0], [0, 1]], test=[[-1, -1], [-1, -1]])[0]["test"] == [None, None]
    columns = read(table(a=[1, 0], b=[0, 1]), test=table(a=[-1, -1], b=[-1, -1]), label_column=["a", "b"])
    assert columns[0]["test"] == [None, None]
    misnamed = bare.rename_column("text", "labl").add_column("text", ["x", "y"])
    (finding,) = read(["a", "b"], test=misnamed)[2].findings
    assert finding.level == "warning" and "did you mean labl" in finding.text


def test_minus_one_may_be_a_label():
    assert read(["-1", "1"], test=["-1", "-1"])[0]["test"] == ["-1", "-1"]
    assert read([-1, 0, 1], validation=[-1, 1])[0]["validation"] == [-1, 1]


@pytest.mark.parametrize("role", ["train", "validation", "test"])
def test_some_missing_labels(role):
    splits = {"train": ["a", "b", "a"], "validation": ["a", "b"], "test": ["b", "a"]}
    splits[role] = [*splits[role], None, ""]
    message = refusal(splits.pop("train"), **splits)
    assert message.startswith(f"{role}.csv: 2 of ") and "on_bad_row: skip" in message and "rows 10" in message
    splits = {"train": ["a", "b", "a"], "validation": ["a", "b"], "test": ["b", "a"]}
    before = splits[role]
    splits[role] = [*before, None, ""]
    labels, _, after = read(splits.pop("train"), on_bad_row="skip", **splits)
    assert labels[role] == before and "2 of" in said(after) and after.findings[0].level == "warning"


def test_train_and_validation_need_labels():
    assert "data.label_column" in refusal([None, None], on_bad_row="skip")
    assert "data.validation_split: null" in refusal(["a", "b"], validation=[-1, -1], on_bad_row="skip")


# --- what stays, and streams -------------------------------------------------------------------------------------


def test_plain_labels_are_not_touched():
    for values, feature in (
        (["b", "a"], None),
        ([3, 1], None),
        ([1, 0], ClassLabel(names=["x", "y"])),
        ([["a"], []], List(Value("string"))),
        ([[0], [0, 1]], List(ClassLabel(names=["x", "y"]))),
    ):
        train = table(values, feature)
        _, _, after = read(train)
        assert after.by_role["train"] is train and after.findings == []


@pytest.mark.parametrize(
    ("values", "settings", "labels"),
    [
        (["x,y", "y"], {"label_separator": "comma"}, [["x", "y"], ["y"]]),
        (["[1 0]", "[1 1]"], {}, [["x"], ["x", "y"]]),
        (["X ", "y"], {"merge_similar_labels": True}, ["x", "y"]),
    ],
)
def test_streams_are_read_as_they_come(values, settings, labels):
    data = table(values)
    stream = data.remove_columns("row_id").to_iterable_dataset()
    section = DataSection(name="x", label_names=["x", "y"], streaming=True, **settings)
    _, reading = read_labels(Splits({"train": stream}, {"train": "train.csv"}), section, "auto")
    assert read_rows(data, "train.csv", section, reading)["label"][:] == labels
