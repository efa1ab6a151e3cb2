"""Check with one request of at most two seconds whether the Hub is reachable, and download files with known digests.

Without the check, the libraries would retry the download of every file before giving up on an unreachable Hub, which
takes about 20 seconds each time.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hf.core.errors import SourceError, StorageError, causes_of
from sft_hf.core.filesystem import STORAGE_ERRNOS, sha256_of

SECONDS = 2.0
"""Timeout of the first request to the Hub, including name resolution."""

COMMIT = re.compile("[0-9a-f]{40}")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # config, tokenizer, vocabulary, pooling, processor


@dataclass(frozen=True)
class Answer:
    """The Hub's answer to a request for a file."""

    reached: bool
    """Whether the Hub can serve further requests. False: it did not answer in time, or with a server error."""

    refusal: str | None = None
    """Why the file is not available there; None if it is."""


_answers: dict[tuple[str, ...], Answer] = {}
_silent: dict[str, Answer] = {}
"""Endpoints that could not be reached: this process sends no further requests there."""


def ask(name: str, revision: str | None, file: str, repo_type: str = "model") -> Answer:
    """Request the headers of one file of a repository; the answer is cached for the process.

    Args:
        name: the repository, org/name.
        revision: a branch, tag or full commit hash; None: main.
        file: its path in the repository.
        repo_type: "model" or "dataset".
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url  # noqa: F401 -- imported before the clock starts

    if constants.is_offline_mode():
        return Answer(False, "offline mode is set (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)")
    if constants.ENDPOINT in _silent:
        return _silent[constants.ENDPOINT]
    key = (constants.ENDPOINT, repo_type, name, revision or "main", file)
    if key not in _answers:
        # httpx limits each phase of a request, but not name resolution, hence a thread that can be abandoned.
        found: list[Answer] = []
        thread = threading.Thread(target=lambda: found.append(_request(name, revision, file, repo_type)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        answer = found[0] if found else Answer(False, f"the Hub has not answered within {SECONDS:g} s")
        if not found or answer is _NO_CONNECTION:
            _silent[constants.ENDPOINT] = answer
        _answers[key] = answer
    return _answers[key]


_NO_CONNECTION = Answer(False, "the Hub cannot be reached")


def _request(name: str, revision: str | None, file: str, repo_type: str) -> Answer:
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    url = hf_hub_url(name, file, revision=revision, repo_type=repo_type)
    try:
        found = get_hf_file_metadata(url, token=get_token(), timeout=SECONDS)
    except errors.GatedRepoError:
        return Answer(True, "it is gated on the Hub")
    except errors.RepositoryNotFoundError:
        return Answer(True, "the Hub does not show it to this user")
    except errors.RevisionNotFoundError:
        return Answer(True, f"the Hub has no revision {revision} of it")
    except errors.RemoteEntryNotFoundError:
        return Answer(True, f"the Hub has no {file} of it")
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        return Answer(status < 500, f"the Hub answers with status {status}")
    except Exception:  # from huggingface_hub's HTTP library: connection, name resolution, certificate, timeout
        return _NO_CONNECTION
    if found.commit_hash is None or (revision and COMMIT.fullmatch(revision) and found.commit_hash != revision):
        return Answer(False, "the answer is not from the Hub")  # the sign-in page of a network
    return Answer(True)


@contextmanager
def unasked(offline: bool) -> Iterator[None]:
    """Restrict the Hub's libraries to their caches if the Hub was found to be unreachable."""
    from huggingface_hub import constants

    modules: list[Any] = [constants]
    if datasets := sys.modules.get("datasets.config"):
        modules.append(datasets)
    before = [module.HF_HUB_OFFLINE for module in modules]
    if offline:
        for module in modules:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def is_cached(name: str, revision: str, files: Mapping[str, str], repo_type: str) -> bool:
    """Whether all of `files` of a commit are in the Hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return all(
        isinstance(try_to_load_from_cache(name, file, revision=revision, repo_type=repo_type), str) for file in files
    )


def fetch(name: str, revision: str, files: Mapping[str, str], repo_type: str, key: str) -> None:
    """Download `files` of a commit to the Hub's cache, after the small files of a model, and check their digests.

    The named files come last, so that a cache that contains them is complete.

    Args:
        name, revision, repo_type: the repository, and the full hash of a commit.
        files: {path: SHA-256, lower case}.
        key: the recipe's section, for messages.

    Raises SourceError for a file with another digest, StorageError, and the exceptions of huggingface_hub if a
    transfer fails.
    """
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    try:
        with _quiet_bars():
            if repo_type == "model" and not constants.is_offline_mode():
                snapshot_download(name, revision=revision, allow_patterns=_SMALL_FILES)
            for file, sha256 in files.items():
                path = hf_hub_download(name, file, revision=revision, repo_type=repo_type)
                check_digest(Path(path), sha256, f"{name} at {revision[:12]}", file, key)
    except Exception as error:
        for cause in causes_of(error):
            if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
                raise StorageError(f"{name}: {cause.strerror}") from error
        raise


@contextmanager
def _quiet_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quieten = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quieten:
        disable_progress_bars()
    try:
        yield
    finally:
        if quieten:
            enable_progress_bars()


def check_digest(path: Path, sha256: str, where: str, file: str, key: str) -> None:
    """Raise SourceError unless a file exists and has the digest given in the recipe."""
    if not os.path.isfile(path):
        raise SourceError(f"{key}.mirror.files: {where} has no file {file!r}; check the name")
    if (actual := sha256_of(path)) != sha256:
        raise SourceError(
            f"{key}.mirror.files: {file!r} of {where} has the SHA-256 {actual}, but the recipe gives {sha256} for "
            f"{key}.revision; the file is not used"
        )
