"""Hub data sets, loaded with `datasets`; errors are one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import datasets
import huggingface_hub.constants
from datasets import Dataset, IterableDataset

from sft_hf.core import console
from sft_hf.core.errors import DataError, SftError, StorageError, causes_of, did_you_mean
from sft_hf.core.filesystem import STORAGE_ERRNOS
from sft_hf.core.sources.hub import unasked
from sft_hf.core.sources.sources import local_hint

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection
    from sft_hf.core.sources.sources import Source

Data: TypeAlias = Dataset | IterableDataset

_FORMATS = ("csv", "json", "parquet", "text", "arrow", "pandas", "imagefolder", "audiofolder", "webdataset")
_NETWORK_MODULES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def hub_name(source: Source) -> str:
    """Return the name of a data set for messages."""
    return f"Hub data set {source.name!r}"


def load_from_hub(section: DataSection, source: Source) -> tuple[dict[str, Data], str | None]:
    """Return a data set's splits by name, and its commit. Raises DataError, StorageError."""
    if source.name in _FORMATS:
        raise DataError(f"data.name: {source.name!r} is a file format, not a data set; name the file or folder itself")
    what = hub_name(source)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        with unasked(source.offline), console.working(f"loading {what}"):
            loaded = datasets.load_dataset(
                source.name,
                section.config_name,
                revision=source.revision,
                data_files=section.data_files,
                streaming=section.streaming,
            )
        _refuse_other_commit(loaded, source, what)
        return dict(loaded), _commit_of(loaded)
    except MemoryError:
        raise
    except Exception as error:
        # `datasets` and its formats raise many types of exceptions; the message names the data set and the reason.
        refuse(error, what, source.name)


def _refuse_other_commit(loaded: Mapping[str, Data], source: Source, what: str) -> None:
    """If the Hub is unreachable, `datasets` uses the newest cached copy, regardless of its revision."""
    wanted = source.revision or "main"
    if not re.fullmatch("[0-9a-f]{40}", wanted):
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE, f"datasets--{source.name.replace('/', '--')}")
        if not (cache / "refs" / wanted).is_file():
            return
        wanted = (cache / "refs" / wanted).read_text()
    for data in loaded.values():
        for file in data.cache_files if isinstance(data, Dataset) else ():
            if Path(file["filename"]).parent.name != wanted:
                raise DataError(
                    f"{what}: the Hub cannot be reached, and the newest copy in the cache is of another revision; "
                    "try again, or name a local folder"
                )


def _commit_of(loaded: Mapping[str, Data]) -> str | None:
    """`datasets` stores prepared data in a folder named after the commit."""
    files = [file["filename"] for data in loaded.values() if isinstance(data, Dataset) for file in data.cache_files]
    commits = {Path(name).parent.name for name in files}
    return next((name for name in commits if re.fullmatch("[0-9a-f]{40}", name)), None)


def refuse(error: Exception, what: str, name: str = "") -> NoReturn:
    """Raise `error` as StorageError if a disk operation failed, otherwise as a one-line DataError."""
    causes = causes_of(error)
    for cause in causes:
        if isinstance(cause, SftError):
            raise cause
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            raise StorageError(f"{what}: {cause.strerror}") from error
    text = " ".join(str(error).split())[:300] or type(error).__name__
    raise DataError(f"{what}: {_explain(text, causes)}{local_hint(name)}") from error


def _explain(text: str, causes: Sequence[BaseException]) -> str:
    if "gated" in text.lower() or any(type(cause).__name__ == "GatedRepoError" for cause in causes):
        return f"is gated: accept its conditions on its page, then `hf auth login` ({text})"
    if "Revision" in text and "exist" in text:
        return f"has no such revision; check data.revision ({text})"
    if isinstance(causes[0], datasets.exceptions.DatasetNotFoundError):
        return f"was not found, or is private; check data.name, or `hf auth login` ({text})"
    if "scripts are no longer supported" in text:
        return "is a Python script, which `datasets` no longer runs; try data.revision: refs/convert/parquet"
    if match := re.search(
        r"(?:Config name is missing|BuilderConfig '(?P<name>[^']*)' not found).*?\[(?P<all>.*?)\]", text
    ):
        known = re.findall(r"'([^']+)'", match["all"])
        if match["name"] is None:
            return f"has several configurations; set data.config_name. {did_you_mean('', known)}"
        return f"no configuration {match['name']!r} (data.config_name); {did_you_mean(match['name'], known)}"
    if "401" in text and any(type(cause).__name__ == "HfHubHTTPError" for cause in causes):
        return f"the Hub does not accept the token; check HF_TOKEN, or `hf auth login` ({text})"
    if "LocalEntryNotFoundError" in text:  # the cause, which `datasets` has dropped
        return "the Hub cannot be reached, and there is no copy in the cache; try again, or name a local folder"
    for cause in causes:
        # All of these mean that the network is unreachable, or that HF_HUB_OFFLINE is set.
        if (
            isinstance(cause, (ConnectionError, TimeoutError))
            or type(cause).__module__.split(".")[0] in _NETWORK_MODULES
        ):
            return f"the Hub cannot be reached, and there is no copy in the cache ({text}); or name a local folder"
    root = " ".join(str(causes[-1]).split())[:300]
    return f"cannot be loaded: {type(causes[-1]).__name__}: {root}"
