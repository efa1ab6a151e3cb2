"""A small Hugging Face Hub on 127.0.0.1: enough of its HTTP protocol for huggingface_hub, transformers and datasets.

    hub = HubServer(folder)
    first = hub.create("org/name").commit({"config.json": "{}"})
    with hub:                               # HF_ENDPOINT=hub.url in the environment of the process that is to use it
        ...
    hub.requests                            # what was asked, and how it was answered

Errors carry the status and headers by which huggingface_hub 2.4 (`hf_raise_for_status`) tells them apart. A repository
is a list of commits, each a whole folder named by its 40-hex id (see hub_repository.py). The endpoints that read stand
here in `_ROUTES`; those that write, and what can go wrong on purpose, in hub_server_write.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hub_server_write
from hub_repository import LFS_SUFFIXES, Repository, User, entry_of
from hub_server_write import Refusal as _Refusal


@dataclass(frozen=True)
class Request:
    """One request as it was answered."""

    method: str
    path: str  # with the query, as it was sent
    token: str | None
    status: int

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


class HubServer(hub_server_write.Faults):
    """The repositories, and the server that shows them while it is used as a context manager."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: set[str] = set()
        """Tokens that belong to somebody; any other is answered with 401."""
        self.users: dict[str, User] = {}
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        """What has arrived by LFS, by SHA-256."""
        self.uploads: list[str] = []
        """The SHA-256 of each upload by LFS that arrived, in order."""
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lfs_chunk_size: int | None = None
        """Larger objects arrive in parts of this size."""
        self.committing = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def create(
        self,
        name: str,
        kind: str = "models",
        *,
        private: bool = False,
        gated: bool = False,
        readers: tuple[str, ...] = (),
        writers: tuple[str, ...] = (),
    ) -> Repository:
        """Add an empty repository. `readers` are tokens; they count as known from now on."""
        folder = self.folder / kind / name
        repository = Repository(kind, name, folder, private, gated, frozenset(readers), frozenset(writers))
        self.repositories[kind, name] = repository
        self.tokens |= repository.readers
        return repository

    def paths(self, pattern: str = "") -> list[str]:
        """Return the paths asked for in which `pattern` is found."""
        return [request.path for request in self.requests if re.search(pattern, request.path)]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle of an answer is no error of ours; anything else is shown."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(hub_server_write.WriteSide, BaseHTTPRequestHandler):
    # HTTP/1.0: every connection is closed after its answer, so that none outlives the server.
    server: _Server
    lfs_suffixes = LFS_SUFFIXES

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on standard error: `HubServer.requests` is the log."""

    # --- one request ----------------------------------------------------------------------------------------

    def _answer(self) -> None:
        url, hub = urlsplit(self.path), self.server.hub
        self.query = parse_qs(url.query)
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        self.token = value if scheme == "Bearer" else None
        self.reply: tuple[int, bytes, Mapping[str, str]] = (500, b"", {})
        try:
            self.body = self._read_body()
            try:
                hub.strike(self.path, "before")
                self._route(url.path)
                if any(pattern.search(self.path) for pattern in hub.nonsense):
                    self._send(200, b"<html>Welcome to this network</html>", kind="text/html")
                hub.strike(self.path, "after")
            except _Refusal as refusal:
                self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)
        except hub_server_write.HangUp:
            hub.requests.append(Request(self.command, self.path, self.token, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._write_reply()

    def _read_body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if self.server.hub.cut_short(self.path):
            self.rfile.read(size // 2)
            self.server.hub.strike(self.path, "body")
        body = self.rfile.read(size)
        if len(body) < size:  # the client has died
            raise hub_server_write.HangUp
        return body

    def _route(self, path: str) -> None:
        if self.token is not None and self.token not in self.server.hub.tokens:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        for methods, pattern, answer in _ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, path)):
                answer(self, **{name: unquote(text) for name, text in match.groupdict("").items()})
                return
        raise _Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        """Set what will be answered."""
        self.reply = (status, body, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})

    def _write_reply(self) -> None:
        status, body, headers = self.reply
        self.server.hub.requests.append(Request(self.command, self.path, self.token, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        slow = any(pattern.search(self.path) for pattern in self.server.hub.slow)
        for piece in (body[start : start + 1] for start in range(len(body))) if slow else (body,):
            self.wfile.write(piece)
            if slow:
                self.wfile.flush()
                time.sleep(0.0005)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _entry(self, repository: Repository, commit: str, name: str) -> dict[str, Any]:
        return entry_of(repository, commit, name)

    # --- who may see what -----------------------------------------------------------------------------------

    def _repository(self, kind: str, name: str) -> Repository:
        """The repository, if it exists for who asks: a private one and a missing one look the same."""
        found, user = self.server.hub.repositories.get((kind, name)), self.server.hub.users.get(self.token)
        owned = user is not None and user.may_read_under(name.split("/")[0])
        if found is None or (found.private and not owned and self.token not in found.readers | found.writers):
            # The real Hub says 401 to a stranger, who might have the right to see it, and 404 to a user, who has not.
            status, message = (
                (401, "Invalid username or password.") if self.token is None else (404, "Repository not found")
            )
            raise _Refusal(status, message, "RepoNotFound")
        return found

    def _refuse_unless_granted(self, repository: Repository) -> None:
        """What a gated repository lists is public, what is in its files is not."""
        if not repository.gated or self.token in repository.readers:
            return
        what = f"{repository.kind[:-1]} {repository.name}"
        if self.token is None:
            need = "You must have access to it and be authenticated to access it. Please log in."
            raise _Refusal(401, f"Access to {what} is restricted. {need}", "GatedRepo")
        raise _Refusal(403, f"Access to {what} is restricted and you are not in the authorized list.", "GatedRepo")

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision or "main")
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- the API --------------------------------------------------------------------------------------------

    def info(self, kind: str, name: str, revision: str) -> None:
        """`model_info`, `dataset_info`."""
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision)
        siblings = []
        for file in repository.files(commit):
            entry = entry_of(repository, commit, file)
            sibling = {"rfilename": file}
            if "blobs" in self.query:
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if lfs := entry.get("lfs"):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        self._send_json(
            {
                "_id": hashlib.sha1(name.encode()).hexdigest()[:24],
                "id": name,
                **({"modelId": name} if kind == "models" else {}),
                "author": name.split("/")[0],
                "sha": commit,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "createdAt": _DATE,
                "lastModified": _DATE,
                "siblings": siblings,
            }
        )

    def tree(self, kind: str, name: str, revision: str, path: str) -> None:
        """`list_repo_tree`: files and folders below a folder, one level or all; a page holds as many as there are."""
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision)
        folder = repository.path(commit, path)
        if folder is None:
            raise _Refusal(404, f"{path} does not exist on {revision!r}", "EntryNotFound", commit)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        below = [folder] if folder.is_file() else sorted(folder.rglob("*") if recursive else folder.iterdir())
        root = repository.folder / commit
        self._send_json([entry_of(repository, commit, entry.relative_to(root).as_posix()) for entry in below])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        """`get_paths_info`: of the paths in the body (a form, or JSON), those that exist."""
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision)
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = (json.loads(self.body) if is_json else parse_qs(self.body.decode())).get("paths", [])
        found = [path for path in paths if repository.path(commit, path)]
        self._send_json([entry_of(repository, commit, path) for path in found])

    def refs(self, kind: str, name: str) -> None:
        """`list_repo_refs`."""
        repository = self._repository(kind, name)

        def listed(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": key, "ref": prefix + key, "targetCommit": commit} for key, commit in names.items()]

        branches, tags = listed(repository.branches, "refs/heads/"), listed(repository.tags, "refs/tags/")
        self._send_json({"branches": branches, "tags": tags, "converts": []})

    def commits(self, kind: str, name: str, revision: str) -> None:
        """`list_repo_commits`, newest first."""
        repository = self._repository(kind, name)
        newest = repository.commits.index(self._commit(repository, revision))
        authors = [{"user": name.split("/")[0]}]
        told = {"title": "Upload", "message": "", "date": _DATE, "authors": authors}
        self._send_json([{"id": commit, **told} for commit in repository.commits[newest::-1]])

    def resolve(self, prefix: str, name: str, revision: str, path: str) -> None:
        """A file's content (GET), or only its headers (HEAD); Range is obeyed."""
        repository = self._repository("datasets" if prefix else "models", name)
        self._refuse_unless_granted(repository)
        commit = self._commit(repository, revision)
        file = repository.path(commit, path)
        if file is None or not file.is_file():
            raise _Refusal(404, "Entry not found", "EntryNotFound", commit)
        content = file.read_bytes()
        entry = entry_of(repository, commit, path)
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"',
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers, "application/octet-stream")
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            refusal = {**headers, "Content-Range": f"bytes */{len(content)}"}
            self._send(416, b"", refusal, "application/octet-stream")
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers, "application/octet-stream")


_DATE = "2026-01-01T00:00:00.000Z"
_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
_ROUTES: list[tuple[str, str, Any]] = [
    *hub_server_write.ROUTES,
    ("GET", _API + r"(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", _API + r"/refs", _Handler.refs),
    ("GET", _API + r"/commits/(?P<revision>[^/]+)", _Handler.commits),
    ("GET HEAD", rf"/(?P<prefix>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process to which `endpoint` is the Hub: no token, no cache, no proxy of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    return {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),  # the package, and helpers beside this one
    }


def run_client(endpoint: str, home: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code to which `endpoint` is the Hub, beside its `home`; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=home.parent,
        env=client_environment(endpoint, home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
