"""Unusable rows: counted, and either reported as an error or skipped, depending on `data.on_bad_row`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sft_hf.core.errors import DataError

LISTED = 20  # skipped rows that a note lists
SKIPPED = "rows skipped (data.on_bad_row)"  # in every note on skipped rows


def skipped_rows(where: str, problems: Sequence[str], total: int, count: int | None = None) -> list[str]:
    """Return the note with the number of skipped rows of `total`, listing some; empty if there are none.

    `count`: the number of skipped rows, if `problems` contains only the first of them.
    """
    count = len(problems) if count is None else count
    if not count:
        return []
    more = f"; and {count - LISTED} more" if count > LISTED else ""
    listed = "; ".join(problems[:LISTED])
    return [f"{where}: {count} of {total} {SKIPPED}: {listed}{more}"]


class BadRows:
    """The unusable rows of one file.

    The error names the first one and their number, which is only known at the end of the file.
    """

    def __init__(self, where: str, skip: bool, between: str = ": ", heard: Callable[[str], None] | None = None) -> None:
        self.where, self.skip, self._between, self._heard = where, skip, between, heard
        self.count = self.total = 0
        self._problems: list[str] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, problem: str) -> None:
        """Record the problem of a row; the text identifies the row."""
        self.count += 1
        if self._heard is not None:
            self._heard(f"{self.where}{self._between}{problem}")
        if len(self._problems) < LISTED:
            self._problems.append(problem)

    def finish(self, notes: list[str]) -> None:
        """Note the skipped rows. Raises DataError for the first one if rows may not be skipped."""
        if not self.count:
            return
        if not self.skip:
            raise DataError(self.refusal())
        first = [problem.partition(";")[0] for problem in self._problems]
        notes += skipped_rows(self.where, first, self.total + self.count, self.count)

    def refusal(self) -> str:
        """Return the message about the first row, with the total number of bad rows."""
        more = ""
        if self.count > 1:
            more = f" ({self.count} rows cannot be used; data.on_bad_row: skip leaves them out)"
        return f"{self.where}{self._between}{self._problems[0]}{more}"
