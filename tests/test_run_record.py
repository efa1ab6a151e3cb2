"""Run folders as they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sft_hf.recipe import validate_recipe
from sft_hf.run_folder import RunFolder
from sft_hf.run_record import read_record


def finished_run(path: Path, predictions: list[dict[str, Any]]) -> RunFolder:
    """The folder of a run that was finished, without a model to speak of."""
    folder = RunFolder(path)
    recipe = {"task": {"name": "text_classification"}, "model": {"name": "org/base"}, "data": {"name": "org/reviews"}}
    folder.start(validate_recipe(recipe), overwrite=False)
    folder.append_log({"step": 1, "loss": 0.5})
    metrics = {"primary_metric": "accuracy"}
    folder.write_results(lambda model: (model / "config.json").touch(), metrics, predictions, None)
    folder.lock.release()
    return folder


@pytest.mark.parametrize("label", ["other\x85", "a\u2028b", "a\u2029b"])
def test_labels_with_line_breaks_of_unicode_are_read_back(tmp_path, label):
    rows = [{"id": 0, "reference": label, "prediction": "b"}, {"id": 1, "reference": "b", "prediction": label}]
    record = read_record(finished_run(tmp_path / "run", rows).path)
    assert record.predictions == rows and record.log == [{"step": 1, "loss": 0.5}]
