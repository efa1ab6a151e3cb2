"""Rows that cannot be used: counted, and refused or left out as `data.on_bad_row` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sft_hf.core.errors import DataError

LISTED = 20  # rows left out that a note names


def skipped_rows(where: str, problems: Sequence[str], total: int, count: int | None = None) -> list[str]:
    """Return the note that says how many of `total` rows were left out, and lists some; none if there are none.

    `count`: how many there are, where `problems` holds the first of them only.
    """
    count = len(problems) if count is None else count
    if not count:
        return []
    more = f"; and {count - LISTED} more" if count > LISTED else ""
    listed = "; ".join(problems[:LISTED])
    return [f"{where}: {count} of {total} rows skipped (data.on_bad_row): {listed}{more}"]


class BadRows:
    """The rows of one file that cannot be used.

    The first is the one that an error names; the error says how many there are, which only the end of the file tells.
    """

    def __init__(self, where: str, skip: bool, between: str = ": ", heard: Callable[[str], None] | None = None) -> None:
        self.where, self.skip, self._between, self._heard = where, skip, between, heard
        self.count = self.total = 0
        self._problems: list[str] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, problem: str) -> None:
        """Take down what is wrong with a row, which the text names."""
        self.count += 1
        if self._heard is not None:
            self._heard(f"{self.where}{self._between}{problem}")
        if len(self._problems) < LISTED:
            self._problems.append(problem)

    def finish(self, notes: list[str]) -> None:
        """Say which rows are left out. Raises DataError for the first if none may be."""
        if not self.count:
            return
        if not self.skip:
            raise DataError(self.refusal())
        first = [problem.partition(";")[0] for problem in self._problems]
        notes += skipped_rows(self.where, first, self.total + self.count, self.count)

    def refusal(self) -> str:
        """Return the message about the first row, with the number of others."""
        more = ""
        if self.count > 1:
            more = f" ({self.count} rows cannot be used; data.on_bad_row: skip leaves them out)"
        return f"{self.where}{self._between}{self._problems[0]}{more}"
