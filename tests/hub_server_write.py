"""The half of tests/hub_server.py that is written to, and what goes wrong there on purpose.

It speaks what huggingface_hub 2.4 speaks when it pushes: whoami, creation of a repository, validation of a card,
preupload, Git LFS (batch, one PUT or parts, verify), the commit as lines of JSON, branches and tags. Not Xet: a client
that has hf_xet uses it unasked unless HF_HUB_DISABLE_XET is set, as `client_environment` does.

A commit becomes visible in one step, as the last thing `Repository.commit` does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any

HANGS_AFTER = 60  # seconds after which a test that waits for a request has failed


class Refusal(Exception):
    """An answer that is an error, with the headers by which huggingface_hub tells them apart."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


class HangUp(Exception):
    """The connection is closed without an answer."""


@dataclass
class Fault:
    """What goes wrong with requests whose path holds `pattern`, the next `times` of them (None: all).

    `at` is the moment: "body" (half of the request's body has arrived), "before" (all of it, nothing is done yet) or
    "after" (done, not answered). With a `status` it is answered with that; else the connection is closed.
    """

    pattern: re.Pattern[str]
    at: str = "before"
    status: int | None = None
    times: int | None = None

    def strike(self) -> None:
        """Do it."""
        if self.status is not None:
            raise Refusal(self.status, f"on purpose: {self.status}")
        raise HangUp


@dataclass
class Hold(Fault):
    """A request that waits until the test lets it go on, or hangs up on it."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    goes_on: bool = False

    def strike(self) -> None:
        """Wait."""
        self.reached.set()
        assert self.released.wait(HANGS_AFTER), f"{self.pattern.pattern}: nobody let the request go on"
        if not self.goes_on:
            raise HangUp

    def wait(self) -> None:
        """Wait until such a request has come to the moment."""
        assert self.reached.wait(HANGS_AFTER), f"no request for {self.pattern.pattern}"

    def go_on(self) -> None:
        """Let it be answered."""
        self.goes_on = True
        self.released.set()

    def hang_up(self) -> None:
        """Close its connection."""
        self.released.set()


class Faults:
    """The faults of a server; `HubServer` is one."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.slow: list[re.Pattern[str]] = []
        self.nonsense: list[re.Pattern[str]] = []

    def fail(self, pattern: str, status: int = 503, *, times: int | None = None) -> Fault:
        """Answer with `status` from now on, or `times` times, what has a path in which `pattern` is found."""
        return self._add(Fault(re.compile(pattern), "before", status, times))

    def hang_up(self, pattern: str, at: str = "before", *, times: int | None = 1) -> Fault:
        """Close the connection of such a request without an answer."""
        return self._add(Fault(re.compile(pattern), at, None, times))

    def hold(self, pattern: str, at: str = "before") -> Hold:
        """Have the next such request wait for the test."""
        held = Hold(re.compile(pattern), at, None, 1)
        self._add(held)
        return held

    def trickle(self, pattern: str) -> None:
        """Answer such requests byte by byte."""
        self.slow.append(re.compile(pattern))

    def garble(self, pattern: str) -> None:
        """Answer such requests with a page that is no JSON, as a proxy does."""
        self.nonsense.append(re.compile(pattern))

    def heal(self) -> None:
        """Forget all of these."""
        with self._lock:
            self._faults.clear()
            self.slow.clear()
            self.nonsense.clear()

    def strike(self, path: str, at: str) -> None:
        """Do what is to go wrong with this request at this moment, if anything is."""
        with self._lock:
            fault = self._find(path, at)
            if fault and fault.times is not None:
                fault.times -= 1
        if fault:
            fault.strike()

    def cut_short(self, path: str) -> bool:
        """Whether a fault waits for this request in the middle of its body."""
        return self._find(path, "body") is not None

    def _find(self, path: str, at: str) -> Fault | None:
        return next((f for f in self._faults if f.at == at and f.times != 0 and f.pattern.search(path)), None)

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault


class WriteSide:
    """Endpoints that write; `_Handler` of hub_server.py is one, and has what is used here but not defined."""

    server: Any
    body: bytes
    token: str | None
    headers: Any

    # --- who may write what ---------------------------------------------------------------------------------

    def _user(self) -> Any:
        if self.token is None or self.token not in self.server.hub.users:
            raise Refusal(401, "Invalid username or password.")
        return self.server.hub.users[self.token]

    def _writable(self, kind: str, name: str) -> Any:
        repository = self._repository(kind, name)
        user = self.server.hub.users.get(self.token)
        owns = user is not None and user.may_write_under(name.split("/")[0])
        if not owns and self.token not in repository.writers:
            raise Refusal(403, "You don't have the rights to write to this repository")
        return repository

    def whoami(self) -> None:
        """`HfApi.whoami`."""
        user = self._user()
        organizations = [{"name": name, "type": "org", "roleInOrg": "write"} for name in user.organizations]
        organizations += [{"name": name, "type": "org", "roleInOrg": "read"} for name in user.only_reads]
        token: dict[str, Any] = {"displayName": "tests", "role": user.role}
        if user.scopes is not None:
            scoped = [{"entity": {"name": name}, "permissions": list(what)} for name, what in user.scopes.items()]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        self._send_json({"type": "user", "name": user.name, "orgs": organizations, "auth": {"accessToken": token}})

    def may_write(self, kind: str, name: str) -> None:
        """`HfApi.auth_check(write=True)`."""
        self._writable(kind, name)
        self._send_json({})

    def create_repository(self) -> None:
        """`HfApi.create_repo`; like the Hub, with a first commit that holds .gitattributes."""
        user, wanted, hub = self._user(), json.loads(self.body), self.server.hub
        owner = wanted.get("organization") or user.name
        if not user.may_write_under(owner):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        kind, name = wanted.get("type", "model") + "s", f"{owner}/{wanted['name']}"
        url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in hub.repositories:
            self._send(409, json.dumps({"error": "You already created this repo", "url": url}).encode())
            return
        hub.create(name, kind, private=wanted.get("visibility") == "private").commit({".gitattributes": ATTRIBUTES})
        self._send_json({"url": url, "name": name})

    # --- content --------------------------------------------------------------------------------------------

    def validate_yaml(self) -> None:
        """What `create_commit` asks before it uploads a README.md."""
        import yaml

        parts = json.loads(self.body)["content"].split("---\n")
        try:
            data = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
            errors: list[Any] = [] if isinstance(data, dict) else [{"message": "the metadata is no mapping"}]
        except yaml.YAMLError as error:
            data, errors = None, [{"message": f"not valid YAML: {error}"}]
        told = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        self._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": told}).encode())

    def preupload(self, kind: str, name: str, revision: str) -> None:
        """Which files go by LFS, and what is there under their names."""
        repository = self._writable(kind, name)
        commit = self._commit(repository, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            known = repository.path(commit, file["path"])
            entry = self._entry(repository, commit, file["path"]) if known else {}
            mode = "lfs" if file["path"].endswith(self.lfs_suffixes) else "regular"
            oid = entry.get("lfs", entry).get("oid")
            ignored = self._is_ignored(repository, commit, file["path"])
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        self._send_json({"files": answers})

    def _is_ignored(self, repository: Any, commit: str, path: str) -> bool:
        ignore = repository.path(commit, ".gitignore")
        return ignore is not None and path in ignore.read_text().split()

    def lfs_batch(self, name: str) -> None:
        """Where to send each object; no `actions` for those that are there."""
        self._writable("models", name)
        hub, answers = self.server.hub, []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size}
            if oid not in hub.objects:
                header, href = {}, f"{hub.url}/lfs-storage/{oid}?X-Amz-Signature={SIGNATURE}"
                if hub.lfs_chunk_size and size > hub.lfs_chunk_size:
                    count = -(-size // hub.lfs_chunk_size)
                    header = {str(part): f"{hub.url}/lfs-storage/{oid}/{part}" for part in range(1, count + 1)}
                    header["chunk_size"] = str(hub.lfs_chunk_size)
                    href = f"{hub.url}/lfs-complete/{oid}"
                verify = {"href": f"{hub.url}/{name}.git/info/lfs/verify"}
                answer["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
            answers.append(answer)
        self._send_json({"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str, part: str) -> None:
        """The storage service: it knows no tokens, only the address that it gave out."""
        hub = self.server.hub
        if part:
            hub.parts[oid, int(part)] = self.body
        else:
            self._store(oid, self.body)
        self._send(200, b"", {"ETag": hashlib.md5(self.body).hexdigest()})

    def lfs_complete(self, oid: str) -> None:
        """Put the parts of an object together."""
        hub = self.server.hub
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._store(oid, b"".join(hub.parts.pop((oid, number)) for number in numbers))
        self._send_json({})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content is not what its id says")
        self.server.hub.objects[oid] = content
        self.server.hub.uploads.append(oid)

    def lfs_verify(self, name: str) -> None:
        """Whether an object has arrived."""
        wanted = json.loads(self.body)
        if len(self.server.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "Object does not exist")
        self._send_json({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        """`HfApi.create_commit`: a header, then a line for each file that is added or deleted."""
        repository, hub = self._writable(kind, name), self.server.hub
        lines = [json.loads(line) for line in self.body.splitlines()]
        with hub.committing:
            head = self._commit(repository, revision)
            if lines[0]["value"].get("parentCommit", head) != head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            added, deleted = {}, []
            for line in lines[1:]:
                kind_of_line, value = line["key"], line["value"]
                if kind_of_line == "file":
                    added[value["path"]] = base64.b64decode(value["content"])
                elif kind_of_line == "lfsFile":
                    if value["oid"] not in hub.objects:
                        raise Refusal(400, f"LFS pointer points to a file that does not exist: {value['path']}")
                    added[value["path"]] = hub.objects[value["oid"]]
                elif repository.path(head, value["path"]) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound", head)
                else:
                    deleted.append(value["path"])
            new = repository.commit(added, branch=revision, delete=tuple(deleted))
            repository.messages[new] = lines[0]["value"]["summary"]
        url = f"{hub.url}/{name}/commit/{new}"
        self._send_json({"success": True, "commitOid": new, "commitUrl": url})

    # --- names ----------------------------------------------------------------------------------------------

    def create_branch(self, kind: str, name: str, revision: str) -> None:
        """`HfApi.create_branch`."""
        repository = self._writable(kind, name)
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        repository.branches[revision] = self._commit(repository, json.loads(self.body).get("startingPoint", "main"))
        self._send_json({})

    def create_tag(self, kind: str, name: str, revision: str) -> None:
        """`HfApi.create_tag`."""
        repository, tag = self._writable(kind, name), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = self._commit(repository, revision)
        self._send_json({})


SIGNATURE = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"  # of addresses that the storage service has signed
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/whoami-v2", WriteSide.whoami),
    ("GET", _API + "/auth-check/write", WriteSide.may_write),
    ("POST", "/api/repos/create", WriteSide.create_repository),
    ("POST", "/api/validate-yaml", WriteSide.validate_yaml),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", WriteSide.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", WriteSide.lfs_batch),
    ("POST", rf"/{_NAME}\.git/info/lfs/verify", WriteSide.lfs_verify),
    ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", WriteSide.lfs_upload),
    ("POST", r"/lfs-complete/(?P<oid>[0-9a-f]{64})", WriteSide.lfs_complete),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", WriteSide.commit),
    ("POST", _API + r"/branch/(?P<revision>[^/]+)", WriteSide.create_branch),
    ("POST", _API + r"/tag/(?P<revision>[^/]+)", WriteSide.create_tag),
]
