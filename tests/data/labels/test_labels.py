from __future__ import annotations

import dataclasses

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, LargeList, List, Value

from sft_hf.core.errors import DataError
from sft_hf.data.labels.label_map import LabelMap, build_label_map, encode_labels, is_multi_label


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp())


def table(values, feature=None) -> Dataset:
    return Dataset.from_dict({"label": values}, features=Features({"label": feature}) if feature else None)


def names_of(values, feature=None, label_names=None) -> tuple[str, ...]:
    return build_label_map(table(values, feature), "label", label_names, "train.csv").names


def refusal(function, *arguments) -> str:
    with pytest.raises(DataError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_label_map():
    label_map = LabelMap(("no", "yes"))
    assert label_map.id2label == {0: "no", 1: "yes"} and label_map.label2id == {"no": 0, "yes": 1}
    assert label_map.encode("yes") == 1
    assert label_map == LabelMap(("no", "yes")) and len({label_map, LabelMap(("no", "yes"))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        label_map.names = ()
    assert refusal(label_map.encode, "yess") == "label 'yess' was never seen in train; did you mean yes? Valid: no, yes"
    assert LabelMap(("1", "2")).encode(2.0) == 1 and LabelMap(("false", "true")).encode(True) == 1


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b", "c"], ("b", "a", "c")),
        (["10", "2", "1", "10"], ("1", "2", "10")),
        (["-1", "1", "0"], ("-1", "0", "1")),
        (["10", "2", "x"], ("10", "2", "x")),
        ([10, 2, 1], ("1", "2", "10")),
        ([-1, 1, -1], ("-1", "1")),
        ([3.0, 1.0, 2.0], ("1", "2", "3")),
        ([True, False], ("false", "true")),
        (["yes ", "yes"], ("yes ", "yes")),
        (['["b", "a"]', "[]", '["c"]'], ("b", "a", "c")),
        ([["10"], [], ["9", "10"]], ("9", "10")),
        ([[3, 1], [2]], ("1", "2", "3")),
    ],
)
def test_order_of_values(values, names):
    assert names_of(values) == names


@pytest.mark.parametrize("wrap", [lambda f: f, List, LargeList])
def test_declared_names_keep_their_order(wrap):
    feature = wrap(ClassLabel(names=["z", "a", "never used"]))
    values = [1, 0] if isinstance(feature, ClassLabel) else [[1], [0]]
    assert names_of(values, feature) == ("z", "a", "never used")
    assert names_of(values, feature, ["a", "z"]) == ("a", "z")


def test_explicit_names_stand_for_numbers_too():
    label_map = build_label_map(table(["0", "1", "1"]), "label", ["negative", "positive"], "train.csv")
    assert encode_labels(table(["1", "0"]), "label", label_map, "x", False) == [1, 0]
    assert encode_labels(table([1, 0, 1]), "label", label_map, "x", False) == [1, 0, 1]
    assert encode_labels(table(["positive"]), "label", label_map, "x", False) == [1]
    assert "label '2' is not one of data.label_names" in refusal(
        encode_labels, table([2]), "label", label_map, "x", False
    )
    assert LabelMap(("1", "0"), "label_names").encode(1) == 0, "a name comes before a position"
    assert "never seen" in refusal(LabelMap(("negative", "positive")).encode, 1)


@pytest.mark.parametrize(
    ("values", "label_names", "expected"),
    [
        (["a", "a"], None, "column 'label' has only the label 'a'; classification needs at least 2"),
        ([[], []], None, "no label"),
        (["a", "b"], ["a"], "data.label_names has only the label 'a'"),
        (["a", "b"], ["a", "b", "a"], "data.label_names has a label twice"),
        (["a", "b"], ["a", " "], "data.label_names has a label without a name"),
        (["a", None], None, "train.csv row 1 (label column 'label'): the label is empty"),
        (["a", "b", " "], None, "train.csv row 2 (label column 'label'): the label is empty"),
        ([1.0, float("nan")], None, "row 1 (label column 'label'): the label is empty"),
        (
            [1.0, 2.5],
            None,
            "row 1 (label column 'label'): label 2.5 is a fraction; to predict numbers, set task.problem_type: ",
        ),
        ([["a"], ["b", ""]], None, "row 1 (label column 'label'): the label is empty"),
        ([["a"], None, ["b"]], None, "row 1 (label column 'label'): the list of labels is missing"),
        ([{"a": 1}, {"a": 2}], None, "neither text nor a whole number (dict)"),
    ],
)
def test_label_maps_that_cannot_be(values, label_names, expected):
    assert expected in refusal(build_label_map, table(values), "label", label_names, "train.csv")


def test_labels_that_are_whole_texts_or_endless_numbers_make_no_endless_message():
    split = Dataset.from_dict({"label": ["9" * 5000, "2", "x" * 100_000]})
    label_map = build_label_map(split, "label", None, "train.csv")
    with pytest.raises(DataError, match="was never seen in train") as caught:
        label_map.encode("a\nb" * 100_000)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    numbers = Dataset.from_dict({"label": ["9" * 5000, "2"]})
    assert build_label_map(numbers, "label", None, "train.csv").names == ("9" * 5000, "2")


def test_lists_in_a_single_label_task():
    assert "set task.problem_type: multi_label_classification" in refusal(
        build_label_map, table([["a"], ["b"]]), "label", None, "x", False
    )


def test_streams_must_declare_their_labels():
    stream = table(["a", "b"]).to_iterable_dataset()
    assert "list them in data.label_names" in refusal(build_label_map, stream, "label", None, "x")
    assert build_label_map(stream, "label", ["a", "b"], "x").names == ("a", "b")
    declared = table([0, 1], ClassLabel(names=["a", "b"])).to_iterable_dataset()
    assert build_label_map(declared, "label", None, "x") == LabelMap(("a", "b"), "features")


def test_splits_are_matched_by_name():
    train = table([0, 1], ClassLabel(names=["cat", "dog"]))
    test = table([0, 1, 1], ClassLabel(names=["dog", "cat"]))
    label_map = build_label_map(train, "label", None, "x")
    assert encode_labels(train, "label", label_map, "x", False) == [0, 1]
    assert encode_labels(test, "label", label_map, "x", False) == [1, 0, 0]
    assert encode_labels(table(["dog"]), "label", label_map, "x", False) == [1]
    assert encode_labels(table([1]), "label", label_map, "x", False) == [1], "a stream's rows have lost their names"
    other = table([0], ClassLabel(names=["cow"]))
    assert "label 'cow' is not one of the data set's class names" in refusal(
        encode_labels, other, "label", label_map, "x", False
    )


def test_integers_and_their_text_are_the_same_label():
    label_map = build_label_map(table(["10", "2"]), "label", None, "x")
    for values in ([2, 10], [2.0, 10.0], ["2", "10"]):
        assert encode_labels(table(values), "label", label_map, "x", False) == [0, 1]


def test_an_unknown_label_is_named_with_its_row():
    label_map = LabelMap(("ham", "spam"))
    data = table(["ham", "spam "]).add_column("row_id", [3, 17])
    message = refusal(encode_labels, data, "label", label_map, "test.csv", False)
    assert message.startswith("test.csv row 17 (label column 'label'): label 'spam ' was never seen in train")
    assert "data.merge_similar_labels" in message and "did you mean spam? Valid: ham, spam" in message
    assert "train; did you mean spam?" in refusal(label_map.encode, "spa")


def test_hidden_labels():
    data = table([-1, -1], ClassLabel(names=["a", "b"]))
    message = refusal(encode_labels, data, "label", LabelMap(("a", "b")), "glue [test]", False)
    assert message.startswith("glue [test] row 0 ") and "hidden" in message and "data.test_split" in message
    assert encode_labels(table([-1, 1]), "label", LabelMap(("-1", "1")), "x", False) == [0, 1]


def test_numbers_beyond_the_declared_names():
    features = Features({"label": ClassLabel(names=["a", "b"])})
    data = Dataset(pa.table({"label": [0, 5]}, schema=features.arrow_schema))
    assert "x row 1 (label column 'label'): label 5 is outside the data set's 2 class names" in refusal(
        encode_labels, data, "label", LabelMap(("a", "b")), "x", False
    )


def test_multi_label_rows():
    label_map = LabelMap(("a", "b", "c"))
    lists = table([["c", "a"], [], ["b", "b"]])
    assert encode_labels(lists, "label", label_map, "x", True) == [[0, 2], [], [1]]
    text = table(['["c", "a"]', "[]", ' ["b"] '])
    assert encode_labels(text, "label", label_map, "x", True) == [[0, 2], [], [1]]
    declared = table([[0], [1, 0]], List(ClassLabel(names=["c", "b"])))
    assert encode_labels(declared, "label", label_map, "x", True) == [[2], [1, 2]]
    assert encode_labels(table([[0, 1, 0]]), "label", LabelMap(("0", "1")), "x", True) == [[0, 1]], (
        "no indicator vector"
    )


@pytest.mark.parametrize("value", ["a", '{"a": 1}', "[a]", "", None])
def test_multi_label_rows_that_are_no_lists(value):
    data = table(['["a"]', value])
    message = refusal(encode_labels, data, "label", LabelMap(("a", "b")), "x", True)
    assert "x row 1 " in message and "write a JSON list" in message


def test_single_numbers_are_no_lists_of_labels():
    assert "lists only" in refusal(encode_labels, table([1]), "label", LabelMap(("0", "1")), "x", True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["a"], []], True),
        ([[1], [2]], True),
        (['["a"]', "[]"], True),
        (["a", "b"], False),
        (["[unk]", '["a"]'], False),
        (["[1", "2]"], False),
        (["", "a"], False),
        (["", None], False),
        ([1, 2], False),
        (["{}", "1"], False),
    ],
)
def test_is_multi_label(values, expected):
    data = table(values)
    assert is_multi_label(data, "label") is expected
    assert is_multi_label(data.to_iterable_dataset(), "label") is expected
    typeless = IterableDataset.from_generator(_rows, gen_kwargs={"values": tuple(values)})
    assert is_multi_label(typeless, "label") is expected


def _rows(values):
    for value in values:
        yield {"label": value}


def test_is_multi_label_by_type_alone():
    assert is_multi_label(table([], List(Value("string"))), "label")
    assert not is_multi_label(table([], Value("string")), "label")


def test_rows_beyond_one_batch_are_found(monkeypatch):
    monkeypatch.setattr("sft_hf.data.labels.label_map.READ_BATCH", 3)
    assert encode_labels(table(["a", "b"] * 4), "label", LabelMap(("a", "b")), "x", False) == [0, 1] * 4


def test_formatted_data_sets_are_read_the_same():
    data = table([1, 0]).with_format("numpy")
    assert build_label_map(data, "label", None, "x").names == ("0", "1")
    assert encode_labels(data, "label", LabelMap(("0", "1")), "x", False) == [1, 0]
