"""Pushing a finished run to the Hub in a single commit."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from sft_hf.core import console
from sft_hf.core.errors import UserError
from sft_hf.core.filesystem import human_bytes
from sft_hf.core.redaction import redact
from sft_hf.core.run.folder import open_run
from sft_hf.publishing.hub.access import (
    PATIENCE,
    answers_within,
    check_name,
    explain,
    one_line_errors,
    write_access,
)
from sft_hf.publishing.hub.files import Files, files_of_run, is_publishable, refuse_secrets, with_named_cards

log = logging.getLogger("sft_hf")

Operations = list["CommitOperationAdd | CommitOperationDelete"]


@dataclass(frozen=True)
class PushResult:
    """The state of the repository on the Hub after the push.

    `url` is the web page, `commit` the 40 hex digits to load it by (`revision=`), `files` the run's files in it.
    `changed` is False if nothing had to be committed; `private` is whether the repository is hidden from others.
    """

    repo_id: str
    url: str
    commit: str
    files: tuple[str, ...]
    changed: bool
    private: bool


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    card: str | None = None,
    timeout: float = PATIENCE,
) -> PushResult:
    """Publish the model of a finished run, with its adapter, card, recipe and metrics, in one commit.

    The commit also deletes files of an earlier push that this run does not have (such as old shards); other files of
    the repository are kept. An interrupted push leaves either the old or the new state, and calling it again completes
    it; large files already uploaded are not sent again.

    Args:
        run: the run folder.
        repo_id: `owner/name`, or `name` for one of the user's own; created if it does not exist.
        private: whether to create the repository as private; existing repositories are unchanged.
        revision: the branch to commit to, created from main if it does not exist. Default: main.
        tag: a name for the commit.
        message: the first line of the commit message.
        card: content of README.md. Default: the run's, rewritten with the repository's name; an edited card is kept.
        timeout: seconds without a response after which the Hub is considered unreachable.

    Raises:
        RunFolderError: the run is not finished.
        CheckpointError: a model file is, or refers to, a file outside its folder.
        UserError: a file with a secret (nothing is uploaded), missing write permission, a repository that changed
            during the push, an unreachable Hub.
    """
    check_name(repo_id)
    branch = _check_ref(revision or "main", "revision", "branch")
    if tag is not None:
        _check_ref(tag, "tag", "tag")
    message = message or "Upload model"
    if redact(message) != message:
        raise UserError("message: holds a token or password; nothing was uploaded")
    folder = open_run(run)
    files, left_out = files_of_run(folder)
    if card is not None:
        files["README.md"] = card.encode()
    refuse_secrets(files)
    if left_out:
        log.info("not published: %s", ", ".join(left_out))
    if any(name.endswith(".py") for name in left_out):
        log.warning("code is never published: without its .py files this model may not open elsewhere")
    access = write_access(repo_id, timeout=timeout)
    files = with_named_cards(files, folder, access.repo_id, keep=None if card is None else "README.md")
    target = _Target(HfApi(), access.repo_id, branch)
    with answers_within(timeout), _quiet_hub(), one_line_errors(access.repo_id):
        if not access.exists:
            target.api.create_repo(target.repo_id, private=private, exist_ok=True)
        is_private = bool(target.api.repo_info(target.repo_id).private)
        if access.exists and private and not is_private:
            log.info("%s already exists and is public: everyone can see what is pushed", target.repo_id)
        elif access.exists and not private and is_private:
            log.warning(
                "%s already exists and is private: it stays private; change this in the Hub's settings", repo_id
            )
        commit, changed = target.update(files, tag, message)
    page = f"{target.api.endpoint}/{target.repo_id}" + ("" if branch == "main" else f"/tree/{branch}")
    return PushResult(target.repo_id, page, commit, tuple(files), changed, is_private)


def _check_ref(name: str, key: str, what: str) -> str:
    """Return the name of a branch or tag. Raises UserError if git or the Hub would reject or misinterpret it."""
    valid = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]*(?<![./])", name) and not re.search(r"\.\.|//|\.lock$", name)
    if not valid or name.startswith("refs/") or re.fullmatch("[0-9a-f]{40}", name):
        raise UserError(f"{key}: {redact(name)[:100]!r} is not a valid {what} name; give one such as v1.0")
    return name


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Show progress bars of huggingface_hub only on terminals, and its warnings on one line without signed URLs."""

    def show(warning: Warning | str, *_: Any) -> None:
        log.warning("%s", " ".join(str(warning).split()))

    def strip(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(re.sub(r"\?[^\s']*", "", record.getMessage())), ()
        return True

    handlers = logging.getLogger("huggingface_hub").handlers
    no_bars = (console.is_quiet() or not sys.stderr.isatty()) and not are_progress_bars_disabled()
    for handler in handlers:
        handler.addFilter(strip)
    if no_bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(strip)
        if no_bars:
            enable_progress_bars()


@dataclass(frozen=True)
class _State:
    """A branch on the Hub: its latest commit, the files at its root, and the repository's tags."""

    head: str | None
    files: dict[str, RepoFile]
    tags: dict[str, str]


@dataclass(frozen=True)
class _Target:
    """The branch to push to."""

    api: HfApi
    repo_id: str
    branch: str

    def update(self, files: Files, tag: str | None, message: str) -> tuple[str, bool]:
        """Make the branch contain these files; return its latest commit, and whether it is new."""
        state = self._read()
        operations = _operations(files, state)
        if tag in state.tags and (operations or state.tags[tag] != state.head):
            raise UserError(
                f"{self.repo_id}: the tag {tag!r} already exists, for commit {state.tags[tag][:8]}; choose another, or "
                "delete it on the Hub; nothing was changed"
            )
        if operations or state.head is None:
            commit = self._commit(files, operations, state.head, message)
        else:
            commit = state.head
            log.info("%s is up to date (commit %s); no new commit was made", self.repo_id, commit[:12])
        if tag is not None and tag not in state.tags:
            self._tag(tag, commit)
        return commit, bool(operations)

    def _read(self) -> _State:
        refs = self.api.list_repo_refs(self.repo_id)
        heads: dict[str, str | None] = {ref.name: ref.target_commit for ref in refs.branches}
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        if self.branch not in heads and self.branch != "main":
            if self.branch in tags:
                raise UserError(f"{self.repo_id}: {self.branch!r} is a tag, which cannot be moved; name a branch")
            self.api.create_branch(self.repo_id, branch=self.branch, revision=heads.get("main"), exist_ok=True)
            heads[self.branch] = heads.get("main")
        head = heads.get(self.branch)
        return _State(head, self._files(head) if head else {}, tags)

    def _files(self, commit: str) -> dict[str, RepoFile]:
        entries = list(self.api.list_repo_tree(self.repo_id, revision=commit))
        if any(entry.path == "adapter" and not isinstance(entry, RepoFile) for entry in entries):
            entries += self.api.list_repo_tree(self.repo_id, "adapter", revision=commit)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _commit(self, files: Files, operations: Operations, head: str | None, message: str) -> str:
        """Commit on top of `head` or fail, and verify the files on the Hub."""
        added = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        deleted = [operation.path_in_repo for operation in operations if isinstance(operation, CommitOperationDelete)]
        log.info(
            "uploading %d file%s (%s) to %s%s",
            len(added),
            "" if len(added) == 1 else "s",
            human_bytes(sum(operation.upload_info.size for operation in added)),
            self.repo_id,
            f"; removing {', '.join(deleted)}" if deleted else "",
        )
        try:
            commit: str = self.api.create_commit(
                self.repo_id, operations, commit_message=message, revision=self.branch, parent_commit=head
            ).oid
        except (hub_errors.HTTPError, OSError) as error:
            stored = self._stored_all_the_same(files) if _answer_is_lost(error) else None
            if stored is None:
                raise
            return stored
        if missing := [
            operation.path_in_repo for operation in _operations(files, _State(commit, self._files(commit), {}))
        ]:
            raise UserError(
                f"{self.repo_id}: commit {commit[:8]} lacks {', '.join(missing)} as the run has it; does a .gitignore "
                "of the repository leave it out?"
            )
        return commit

    def _stored_all_the_same(self, files: Files) -> str | None:
        """Return the commit if the Hub has stored it although the connection or a gateway failed."""
        with suppress(hub_errors.HTTPError, OSError):
            state = self._read()
            if not _operations(files, state):
                return state.head
        return None

    def _tag(self, tag: str, commit: str) -> None:
        try:
            self.api.create_tag(self.repo_id, tag=tag, revision=commit)
        except (hub_errors.HTTPError, OSError) as error:
            with suppress(hub_errors.HTTPError, OSError):
                tags = self.api.list_repo_refs(self.repo_id).tags
                if commit in [ref.target_commit for ref in tags if ref.name == tag]:
                    return
            raise UserError(
                f"{self.repo_id}: the files are there (commit {commit[:8]}), the tag {tag!r} may not be; push again to "
                f"set it: {explain(error)}"
            ) from error


def _answer_is_lost(error: Exception) -> bool:
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, hub_errors.HTTPError)


def _operations(files: Files, state: _State) -> Operations:
    """Return the operations that make the Hub match the run: changed files, and deletions of files that are gone."""
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    stale = sorted(name for name in state.files if is_publishable(name) and name not in files)
    return [
        *(operation for operation in added if not _is_there(operation, state.files.get(operation.path_in_repo))),
        *(CommitOperationDelete(name, is_folder=False) for name in stale),
    ]


def _is_there(operation: CommitOperationAdd, entry: RepoFile | None) -> bool:
    """Whether the Hub has a file with this content; files are hashed only if the sizes are equal."""
    if entry is None or entry.size != operation.upload_info.size:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == operation.upload_info.sha256.hex())
    with operation.as_file() as file:
        content = file.read()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)  # git blob id
    return digest.hexdigest() == entry.blob_id
