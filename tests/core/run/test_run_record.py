"""Run folders as they are read back, and what is said of one that cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sft_hf.core.errors import RunFolderError
from sft_hf.core.filesystem import write_json
from sft_hf.core.recipe.recipe import validate_recipe
from sft_hf.core.run.folder import REMEDY, RunFolder
from sft_hf.core.run.record import read_record
from sft_hf.publishing.hub.files import files_of_run


def finished_run(path: Path, predictions: list[dict[str, Any]]) -> RunFolder:
    """The folder of a run that was finished, without a model to speak of."""
    folder = RunFolder(path)
    recipe = {"task": {"name": "text_classification"}, "model": {"name": "org/base"}, "data": {"name": "org/reviews"}}
    folder.start(validate_recipe(recipe), overwrite=False)
    folder.append_log({"step": 1, "loss": 0.5})
    metrics = {"primary_metric": "accuracy"}
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    folder.write_predictions(predictions)
    write_json(folder.metrics_file, metrics)
    folder.lock.release()
    return folder


@pytest.mark.parametrize("label", ["other\x85", "a\u2028b", "a\u2029b"])
def test_labels_with_line_breaks_of_unicode_are_read_back(tmp_path, label):
    rows = [{"id": 0, "reference": label, "prediction": "b"}, {"id": 1, "reference": "b", "prediction": label}]
    record = read_record(finished_run(tmp_path / "run", rows).path)
    assert record.predictions == rows and record.log == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("name", ["metrics.json", "predictions.jsonl", "log.jsonl"])
def test_a_broken_file_is_named_and_resuming_is_no_remedy(tmp_path, name):
    folder = finished_run(tmp_path / "run", [])
    (folder.path / name).write_text("{")
    readers = [lambda: read_record(folder.path)]
    if name == "metrics.json":
        (folder.model / "model.safetensors").touch()
        readers += [folder.finished, lambda: files_of_run(folder)]
    for read in readers:
        with pytest.raises(RunFolderError, match=re.escape(f"{folder.path / name}: cannot be read (")) as refused:
            read()
        assert str(refused.value).endswith(f"; {REMEDY}")


def test_an_unfinished_run_is_continued(tmp_path):
    folder = finished_run(tmp_path / "run", [])
    folder.metrics_file.unlink()
    with pytest.raises(RunFolderError, match=r"is not finished .* continue it with --resume"):
        read_record(folder.path)
