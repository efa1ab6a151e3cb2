"""Access checks on the Hub, and one-line messages for its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, get_session
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from sft_hf.core.errors import SftError, StorageError, UserError, causes_of
from sft_hf.core.filesystem import STORAGE_ERRNOS
from sft_hf.core.redaction import redact

PATIENCE = 300.0
"""Seconds without a response after which the Hub is considered unreachable; huggingface_hub would wait forever."""

_MEANINGS = {
    401: "the Hub does not accept your token; check HF_TOKEN, or `hf auth login`",
    403: "you or your token have no write access",
    404: "the repository does not exist, or you have no access; check its name and your token's permissions",
    409: "it is being changed by someone else; nothing was uploaded; try again",
    412: "it was changed by someone else in the meantime; nothing was uploaded; check it, then push again",
    429: "the Hub's rate limit was reached; try again in a few minutes",
}


@dataclass(frozen=True)
class Access:
    """A repository that the user may write to: its full id, and whether it exists."""

    repo_id: str
    exists: bool


def check_access(repo_id: str, *, kind: str = "model", timeout: float = PATIENCE) -> str:
    """Return the full id, owner and name, of a repository that the user may write to or create.

    Args:
        repo_id: `owner/name`, or `name` for one of the user's own.
        kind: `model` or `dataset`.
        timeout: seconds without a response after which the Hub is considered unreachable.

    Raises UserError for a missing or read-only token, a name that is invalid or owned by another user, missing write
    permission, or an unreachable Hub.
    """
    return write_access(repo_id, kind=kind, timeout=timeout).repo_id


def write_access(repo_id: str, *, kind: str = "model", timeout: float = PATIENCE) -> Access:
    """Like `check_access`, but also return whether the repository exists. Raises UserError."""
    check_name(repo_id)
    api = HfApi()
    with answers_within(timeout), one_line_errors(repo_id):
        user = api.whoami()
        if _token(user).get("role") == "read":
            raise UserError(
                f"{repo_id}: your token has only read access; create one with write access, and run `hf auth login`"
            )
        if "/" not in repo_id:
            repo_id = f"{user['name']}/{repo_id}"
        try:
            api.auth_check(repo_id, repo_type=kind, write=True)
        except hub_errors.GatedRepoError:
            raise UserError(f"{repo_id}: is gated, and you have no write access") from None
        except hub_errors.RepositoryNotFoundError:
            _refuse_to_create(repo_id, user)
            return Access(repo_id, exists=False)
    return Access(repo_id, exists=True)


def check_name(repo_id: str) -> None:
    """Raise UserError for an invalid repository id."""
    try:
        validate_repo_id(repo_id)
    except hub_errors.HFValidationError:
        raise UserError(
            f"{redact(repo_id)[:200]!r}: is not a repository id; use owner/name or name, with letters, digits, _ "
            "and single - and . between them"
        ) from None


def _token(user: dict[str, Any]) -> dict[str, Any]:
    return user.get("auth", {}).get("accessToken") or {}


def _refuse_to_create(repo_id: str, user: dict[str, Any]) -> None:
    """Raise UserError if, according to `whoami`, the user or the token may not create this repository."""
    owner = repo_id.partition("/")[0]
    roles = {organization["name"]: organization.get("roleInOrg") for organization in user.get("orgs", [])}
    if owner != user["name"] and owner not in roles:
        raise UserError(f"{repo_id}: does not exist, and you may not create it under {owner!r}")
    if roles.get(owner) == "read":
        raise UserError(f"{repo_id}: does not exist, and you have only read access to {owner!r}")
    scopes = (_token(user).get("fineGrained") or {}).get("scoped")
    if isinstance(scopes, list) and not any(
        scope.get("entity", {}).get("name") == owner and "repo.write" in scope.get("permissions", [])
        for scope in scopes
    ):
        raise UserError(
            f"{repo_id}: does not exist, and your fine-grained token may not create it under {owner!r}; give it write "
            "access there"
        )


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """Limit the time that huggingface_hub waits for a response, until the end of the block."""
    client = get_session()
    before = client.timeout
    client.timeout = seconds
    try:
        yield
    finally:
        client.timeout = before


@contextmanager
def one_line_errors(repo_id: str) -> Iterator[None]:
    """Convert exceptions of huggingface_hub to a one-line UserError (StorageError for disk errors)."""
    try:
        yield
    except SftError:
        raise
    except (hub_errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        for cause in causes_of(error):
            if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
                raise StorageError(f"{cause.filename or repo_id}: {cause.strerror}") from error
        raise UserError(f"{repo_id}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """Return an explanation of an error of huggingface_hub, without secrets."""
    for cause in causes_of(error):
        if isinstance(cause, hub_errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to push"
        if isinstance(cause, hub_errors.LocalTokenNotFoundError):
            return "no token for the Hub; run `hf auth login`, or set HF_TOKEN"
        if isinstance(cause, hub_errors.HfHubHTTPError):
            return _explain_status(cause)
        if isinstance(cause, hub_errors.HTTPError):
            return f"the Hub cannot be reached, or did not answer ({_short(cause)}); try again"
        if isinstance(cause, (ConnectionError, TimeoutError)):  # raised by hf_xet
            return (
                f"the Hub's storage cannot be reached ({_short(cause)}); try again; with a Hub that has no Xet, "
                "set HF_HUB_DISABLE_XET=1"
            )
        if isinstance(cause, OSError) and cause.filename:
            return f"{cause.filename}: {cause.strerror}"
        if isinstance(cause, ValueError) and str(cause).startswith("Invalid metadata in README.md"):
            return f"{_short(cause).removeprefix('ValueError: ')}; nothing was uploaded"
    return f"unexpected answer from the Hub ({_short(error)}); check HF_ENDPOINT"


def _explain_status(error: hub_errors.HfHubHTTPError) -> str:
    status = error.response.status_code
    if status >= 500:
        return f"the Hub returned a server error ({status}); try again later; files already uploaded are kept"
    said = error.response.headers.get("X-Error-Message") or error.server_message or error.response.reason_phrase
    said = redact(" ".join(said.split()))[:200]
    if status in _MEANINGS:
        return f"{_MEANINGS[status]} ({status}: {said})"
    return f"the Hub refused it ({status}: {said})"


def _short(error: BaseException) -> str:
    return redact(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
