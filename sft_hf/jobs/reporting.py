"""report.html of a run, with the rows that the model was most wrong about; and a page on several runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import SftError
from sft_hf.core.filesystem import write_text
from sft_hf.core.run.record import RunRecord, read_record
from sft_hf.data.loading.roles import ROW_ID
from sft_hf.jobs.inputs import load_data
from sft_hf.publishing.report.run_report import build_report, rows_to_show
from sft_hf.tasks.base import Shown, Task, task_class

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("sft_hf")


def write_report(run: str | Path, output: str | Path | None = None, *, trust_remote_code: bool = False) -> Path:
    """Write a finished run's page to `output`, by default report.html in its folder, and return its path.

    Data that are no longer where the recipe says leave only the rows' contents out. Raises RunFolderError, RecipeError,
    StorageError.
    """
    record = read_record(run, trust_remote_code=trust_remote_code)
    task: Task[Any] = task_class(record.recipe)(record.recipe)
    try:
        split = load_data(record.recipe, task, None).by_role.get(record.split)
    except SftError as error:
        log.warning("the report shows no rows, as the data cannot be read: %s", error)
        split = None
    path = Path(output or Path(run) / "report.html")
    write_text(path, report_page(record, task, split))
    return path


def write_comparison(runs: Sequence[str | Path], output: str | Path, *, trust_remote_code: bool = False) -> Path:
    """Write a page that compares finished runs, and return its path. Raises UserError for runs of different tasks."""
    from sft_hf.publishing.report.comparison import build_comparison

    records = [read_record(run, trust_remote_code=trust_remote_code) for run in runs]
    path = Path(output)
    write_text(path, build_comparison(records))
    return path


def report_page(record: RunRecord, task: Task[Any], split: Dataset | None) -> str:
    """Return report.html, with the rows of `split` that the model was most wrong about, and a gallery."""
    shown = {} if split is None else shown_rows(task, split, rows_to_show(record))
    return build_report(record, shown)


def shown_rows(task: Task[Any], split: Dataset, row_ids: Sequence[int]) -> dict[int, Shown]:
    """Return rows by id as a person perceives them; those whose file is gone are left out, and told."""
    places = {row_id: index for index, row_id in enumerate(split[ROW_ID])}
    found: dict[int, Shown] = {}
    for row_id in row_ids:
        try:
            (found[row_id],) = task.show(split, [places[row_id]])
        except (SftError, KeyError) as error:
            log.warning("the report leaves row %d out: %s", row_id, error)
    return found
