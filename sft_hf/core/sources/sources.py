"""Resolution of a name in a recipe to something that can be opened.

A name is one of three things: a local path, a Hub id, or `pypi://DISTRIBUTION==VERSION/path/inside`, a file or folder
inside a wheel (see `sft_hf.core.sources.wheels`). A Hub id may have a mirror, a folder inside a wheel with the same
files, which is used if the Hub is not available. Nothing else depends on which of them is used: files are checked
against their digests either way, and the name remains the Hub id.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sft_hf.core.sources.hub as hub
from sft_hf.core.errors import SftError, SourceError, did_you_mean
from sft_hf.core.filesystem import sha256_of
from sft_hf.core.redaction import redact
from sft_hf.core.sources.wheels import check_pin, parse_name, path_in_wheel, plain_errors

if TYPE_CHECKING:
    from sft_hf.core.recipe.sections import DataSection, MirrorSection, ModelSection

log = logging.getLogger("sft_hf")

_FORMS = {
    "model": "valid are a local path (./my-model), a Hub id (google/bert_uncased_L-2_H-128_A-2) or "
    "a path in a Python distribution (pypi://some-dist==1.0/some_dist/model)",
    "data": "valid are a local path (./my-data, reviews.csv), a Hub id (stanfordnlp/imdb) or "
    "a path in a Python distribution (pypi://some-dist==1.0/some_dist/data)",
}
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
    """The origin of a model or a data set."""

    name: str  # as written in the recipe
    kind: Literal["hub", "local", "pypi"]
    path: Path | None  # the local file or folder, absolute; None if the Hub or its cache is used
    revision: str | None  # the Hub revision, or None
    sha256: str | None  # of the distribution's wheel (pypi), or of the local file when pinned; lower case
    trusted: bool = False  # whether code that comes with the model may run
    served_by: Literal["hub", "mirror"] | None = None  # for a Hub id
    offline: bool = False  # the Hub cannot be reached: only its cache on this machine is used

    def location(self) -> str:
        """Return the argument for `from_pretrained`: the local path, or the Hub id if the Hub or its cache is used."""
        return self.name if self.path is None else str(self.path)


def resolve_section(section: ModelSection | DataSection, key: str) -> Source:
    """Resolve the name in the recipe's section `key` ("model" or "data"), see `resolve`."""
    what = "pretrained model" if key == "model" else "data set"
    return resolve(
        section.name, revision=section.revision, sha256=section.sha256, mirror=section.mirror, what=what, key=key
    )


def resolve(
    name: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    mirror: MirrorSection | None = None,
    what: str = "pretrained model",
    key: str = "model",
) -> Source:
    """Resolve `name`; a pypi:// name is fetched and unpacked unless it is cached.

    `revision` pins a Hub id; `sha256` (64 hex digits) pins a wheel (required) or a local file. A Hub id takes one
    request per process; with a `mirror`, its files are fetched and checked. `what` ("pretrained model", "data set") and
    `key` (the recipe's section) are also used in messages.

    Raises SourceError for a mistake in the name, StorageError for a full or failing disk.
    """
    sha256 = _digest(sha256, f"{key}.sha256")
    if name.startswith("pypi://"):
        _refuse_revision(name, revision, key)
        wanted = parse_name(name, key, what)
        path, digest = path_in_wheel(wanted, sha256)
        return Source(name, "pypi", path, None, digest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        why = "a plain URL is not fetched; download it and name the local path"
        raise SourceError(f"{key}: {redact(name)!r}: {why}; {_FORMS[key]}")
    local = os.path.expanduser(name)
    # A folder of the same name takes precedence over the Hub, as in Transformers.
    if name and (os.path.exists(local) or looks_like_path(name)):
        _refuse_revision(name, revision, key)
        return _local(name, local, sha256, what, key)
    if not could_be_hub_id(name):
        raise SourceError(f"{key}: {redact(name)!r} is not a valid name of a {what}; {_FORMS[key]}{local_hint(name)}")
    if sha256:
        raise SourceError(
            f"{key}.sha256 pins a pypi:// name or a local file, and {name!r} is a Hub id; "
            f"pin that with {key}.revision (a commit hash)"
        )
    if mirror is not None:
        return _mirrored(name, revision, mirror, what, key)
    answer = hub.ask(name, revision, _FIRST_FILE[what], _REPO_TYPES[what])
    return Source(name, "hub", None, revision, None, served_by="hub", offline=not answer.reached)


_FIRST_FILE = {"pretrained model": "config.json", "data set": "README.md"}
_REPO_TYPES = {"pretrained model": "model", "data set": "dataset"}


def _mirrored(name: str, revision: str | None, mirror: MirrorSection, what: str, key: str) -> Source:
    """Return the Hub repository if the Hub or its cache on this machine has the files, else its mirror."""
    if revision is None or not hub.COMMIT.fullmatch(revision):
        raise SourceError(
            f"{key}.revision: a mirror holds the files of one commit; give its full hash (40 hexadecimal digits)"
        )
    files = {file: _digest(sha256, f"{key}.mirror.files.{file}") or "" for file, sha256 in mirror.files.items()}
    kind = _REPO_TYPES[what]
    answer = hub.ask(name, revision, next(iter(files)), kind)
    why = answer.refusal
    if why is None or (not answer.reached and hub.is_cached(name, revision, files, kind)):
        try:
            with hub.unasked(not answer.reached):
                hub.fetch(name, revision, files, kind, key)
        except SftError:
            raise
        except Exception as error:
            why = f"the transfer from the Hub failed: {type(error).__name__}"
        else:
            place = "the Hub" if answer.reached else f"the Hub's cache on this machine; {why}"
            log.info("%s: %s from %s", key, name, place)
            return Source(name, "hub", None, revision, None, served_by="hub", offline=not answer.reached)
    log.info("%s: %s from its mirror %s; %s", key, name, mirror.name, why)
    place = f"{key}.mirror"
    path, wheel = path_in_wheel(parse_name(mirror.name, place, what), _digest(mirror.sha256, f"{place}.sha256"))
    for file, sha256 in files.items():
        hub.check_digest(path / file, sha256, mirror.name, file, key)
    return Source(name, "hub", path, revision, wheel, served_by="mirror")


def _digest(sha256: str | None, where: str) -> str | None:
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise SourceError(f"{where}: {sha256!r} is not a SHA-256 digest (64 hexadecimal digits)")
    return sha256.lower() if sha256 else None


def _refuse_revision(name: str, revision: str | None, key: str) -> None:
    if revision is not None:
        raise SourceError(f"{key}.revision is only for a Hub id, and {name!r} is not one; remove it")


def could_be_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id, and is not meant for a local file or folder."""
    return bool(_HUB_ID.fullmatch(name)) and not looks_like_path(name)


def local_hint(name: str) -> str:
    """Return a hint if an unknown name may be a misspelled local path; empty if nothing has a similar name."""
    folder, last = os.path.split(os.path.expanduser(name))
    try:
        names = sorted(os.listdir(folder or ".")) if last else []
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(last, names, n=1, cutoff=0.6)
    if not near:
        return ""
    return f". There is no local file or folder {redact(name)!r}; did you mean {os.path.join(folder, near[0])!r}?"


def looks_like_path(name: str) -> bool:
    """Whether a name means a local file or folder, whether or not it exists."""
    return name.startswith((".", "/", "~")) or name.lower().endswith(_PATH_SUFFIXES) or name.count("/") > 1


def _local(name: str, local: str, sha256: str | None, what: str, key: str) -> Source:
    # Symbolic links are kept: a Hub cache names its files by links to blobs without a suffix.
    path = Path(os.path.abspath(local))
    with plain_errors(f"{key}: {what} {str(path)!r}"):
        if not os.path.exists(path):
            link = "is a link to a file that" if os.path.islink(path) else ""
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
