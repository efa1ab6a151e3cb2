"""Splits of data sets of the Hub, whose answers and errors `datasets` is made to give."""

from __future__ import annotations

import errno

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import OfflineModeIsEnabled
from loaded_splits import load, refusal, section

from sft_hf.core.errors import StorageError, Terminated
from sft_hf.core.sources.sources import Source

HUB = Source("org/name", "hub", None, "abc", None, served_by="hub")

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def serve(monkeypatch, result) -> dict:
    """Replace load_dataset; return what it is called with."""
    called: dict = {}

    def load_dataset(*arguments, **options):
        called.update(options, arguments=arguments)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return called


def test_hub_splits_by_role(monkeypatch):
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    served = DatasetDict(train=rows, validation=rows.select([0]), test=rows, unsupervised=rows)
    called = serve(monkeypatch, served)
    splits = load(section(config_name="sst2", test_split="validation"), HUB)
    assert called == {
        "arguments": ("org/name", "sst2"),
        "revision": "abc",
        "data_files": None,
        "streaming": False,
    }
    assert splits.where == {"train": "org/name [train]", "test": "org/name [validation]"}
    assert splits.by_role["train"]["row_id"][:] == [0, 1]
    assert splits.notes[1] == "not used: splits test, unsupervised"
    message = refusal(section(test_split="tset"), HUB)
    assert message == (
        "Hub data set 'org/name': no split 'tset' (data.test_split); did you mean test? "
        "Valid: train, validation, test, unsupervised"
    )
    serve(monkeypatch, DatasetDict(train=rows))
    assert list(load(section(), HUB).by_role) == ["train"]
    assert "org/name [train]: no column 'sentence'" in refusal(section(text_column="sentence"), HUB)
    serve(monkeypatch, DatasetDict(train=rows.select([])))
    assert refusal(section(), HUB) == "org/name [train]: holds no rows"


def test_hub_streaming(monkeypatch):
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_iterable_dataset()
    called = serve(monkeypatch, IterableDatasetDict(train=rows, test=rows))
    splits = load(section(streaming=True), HUB)
    assert called["streaming"] is True
    assert isinstance(splits.by_role["train"], IterableDataset)
    assert splits.by_role["test"]["row_id"][:] == [0, 1]


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub or cannot be accessed."), "check data.name"),
        (DatasetNotFoundError("Dataset 'org/name' is a gated dataset on the Hub."), "accept its conditions"),
        (
            DatasetNotFoundError("Revision 'abc' doesn't exist for dataset 'org/name' on the Hub."),
            "check data.revision",
        ),
        (ConnectionError("Couldn't reach 'org/name' on the Hub"), "the Hub cannot be reached"),
        (caused(ConnectionError("Couldn't reach"), OfflineModeIsEnabled("offline")), "the Hub cannot be reached"),
        (caused(RuntimeError("odd"), TimeoutError("slow")), "the Hub cannot be reached"),
        (RuntimeError("Dataset scripts are no longer supported, but found name.py"), "refs/convert/parquet"),
        (
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']\nlike `x`"
            ),
            "has several configurations; set data.config_name. Valid: cola, sst2",
        ),
        (
            ValueError("BuilderConfig 'sst' not found. Available: ['cola', 'sst2']"),
            "no configuration 'sst' (data.config_name); did you mean sst2? Valid: cola, sst2",
        ),
        (
            caused(
                DatasetGenerationError("An error occurred while generating the dataset"), ValueError("row\n3 is bad")
            ),
            "cannot be loaded: ValueError: row 3 is bad",
        ),
        (KeyError("nothing in particular"), "cannot be loaded: KeyError"),
    ],
)
def test_hub_errors_are_explained(monkeypatch, error, expected):
    serve(monkeypatch, error)
    message = refusal(section(), HUB)
    assert message.startswith("Hub data set 'org/name': ") and expected in message


def test_errors_that_mean_something_else_keep_their_meaning(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    serve(monkeypatch, caused(DatasetGenerationError("An error occurred"), full))
    with pytest.raises(StorageError, match="No space left"):
        load(section(), HUB)
    serve(monkeypatch, caused(DatasetGenerationError("An error occurred"), Terminated("SIGTERM")))
    with pytest.raises(Terminated):
        load(section(), HUB)
    serve(monkeypatch, MemoryError())
    with pytest.raises(MemoryError):
        load(section(), HUB)


def test_formats_are_no_data_sets():
    source = Source("csv", "hub", None, None, None)
    assert "name the file or folder itself" in refusal(section(data_files={"train": "a.csv"}), source)
