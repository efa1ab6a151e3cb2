"""The exceptions of this package and their exit codes.

    SftError                  exit 1
    +-- UserError             exit 2    a mistake that the user can correct
    |   +-- RecipeError                 a recipe, an override, an option
    |   +-- SourceError                 a model or data file that cannot be found or fetched
    |   +-- DataError                   a file, a column, a row, a label
    |   +-- CheckpointError             a model that cannot be loaded, or does not fit the task
    |   +-- RunFolderError              an output folder that is in use, or a folder without a run
    +-- TrainingError         exit 1    training failed (e.g. the loss is not finite)
    +-- StorageError          exit 74   the disk is full or the file system failed
    +-- Terminated            exit 143  SIGTERM, or SIGINT (in Python, the cause of a KeyboardInterrupt); a checkpoint
    |                                   was saved first
    +-- FailedElsewhere       same code as the process of the run that failed and reports the error

Each message is a single line that names the file, row or key, and says what is valid. The command line prints it as
`error: <message>`, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SftError(Exception):
    """Base class of the exceptions raised by this package."""

    exit_code = 1
    on_every_rank = False
    """Whether all processes of a run raise it, so that only one has to report it."""


class UserError(SftError):
    """A mistake in the user's input: recipe, data, model or options."""

    exit_code = 2
    on_every_rank = True

    def _render_traceback_(self) -> list[str]:
        """Return what IPython and Jupyter display instead of a traceback: one line."""
        return [f"{type(self).__name__}: {self}"]


class RecipeError(UserError):
    """A recipe, an override or an option that does not validate."""


class SourceError(UserError):
    """A model or data file that cannot be found, fetched or trusted."""


class DataError(UserError):
    """A file, column, row or label that cannot be used."""


class CheckpointError(UserError):
    """A model that cannot be loaded, or that does not fit the task."""


class RunFolderError(UserError):
    """An output folder that holds another run, or a folder without a run."""


class TrainingError(SftError):
    """Training failed."""

    on_every_rank = True


class StorageError(SftError):
    """The disk is full or the file system failed."""

    exit_code = 74


class Terminated(SftError):
    """The process received a signal and shut down cleanly."""

    exit_code = 143
    on_every_rank = True


class FailedElsewhere(SftError):
    """Rank 0 failed and reports the error; this process exits with the same code and reports nothing."""

    on_every_rank = True

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed")
        self.exit_code = exit_code


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an exception and its chain of causes, in the order of a traceback."""
    causes = [error]
    while cause := causes[-1].__cause__ or (None if causes[-1].__suppress_context__ else causes[-1].__context__):
        causes.append(cause)
    return causes


def did_you_mean(word: str, known: Iterable[str], limit: int = 12, listing: str = "Valid") -> str:
    """Return a hint for an unknown name: the closest known one, then the valid names.

    >>> did_you_mean("lable", ["text", "label"])
    'did you mean label? Valid: text, label'
    """
    names = [_visible(str(name)) for name in known]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    listed = ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    valid = f"{listing}: {listed}" if names else "There are none"
    return f"did you mean {near[0]}? {valid}" if near else valid


def first_few(names: Sequence[str], limit: int, noun: str = "") -> str:
    """Return the first few names and the number of the others.

    >>> first_few(["a", "b", "c", "d"], 2, "labels")
    'a, b and 2 more labels'
    """
    more = f" and {len(names) - limit} more {noun}".rstrip() if len(names) > limit else ""
    return ", ".join(" ".join(name.split()) for name in names[:limit]) + more


def _visible(name: str) -> str:
    """Quote a name that is empty, or has leading or trailing blanks or unprintable characters."""
    return name if name == name.strip() and name and name.isprintable() else repr(name)
