"""What the Hub of hub_server.py holds: repositories of commits on disk, and who may read and write them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".bin", ".safetensors", ".parquet", ".onnx", ".pt", ".pth")
"""Files that the Hub's default .gitattributes gives to LFS; their ETag is the SHA-256, that of others git's blob id."""


@dataclass
class Repository:
    """A model or data set: its commits on disk, its branches and tags, and who may read it."""

    kind: str  # "models" or "datasets", as in the API's paths
    name: str
    folder: Path
    private: bool = False
    gated: bool = False
    readers: frozenset[str] = frozenset()  # tokens that may read it although it is private or gated
    writers: frozenset[str] = frozenset()  # tokens that may write to it
    commits: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)  # of commits that a client made

    def commit(
        self, files: Mapping[str, str | bytes] | Path, *, branch: str = "main", delete: tuple[str, ...] = ()
    ) -> str:
        """Add to the branch's newest commit the files given, or those of a folder, and return the new commit's id."""
        if isinstance(files, Path):
            names = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in names}
        parent = self.branches.get(branch)
        contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        seed = [self.kind, self.name, parent, sorted(contents.items()), delete]
        new = hashlib.sha1(repr(seed).encode()).hexdigest()
        self.folder.joinpath(new).mkdir(parents=True)
        if parent is not None:
            shutil.copytree(self.folder / parent, self.folder / new, dirs_exist_ok=True)
        for name in delete:
            (self.folder / new / name).unlink()
        for name, content in contents.items():
            path = self.folder / new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.commits.append(new)
        self.branches[branch] = new
        return new

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a (whole) commit id names."""
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def files(self, commit: str) -> list[str]:
        """Return the files of a commit, as paths inside the repository."""
        root = self.folder / commit
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def path(self, commit: str, name: str) -> Path | None:
        """Return where a file or folder of a commit lies, None if there is none."""
        root = self.folder / commit
        path = root / name
        return path if ".." not in path.relative_to(root).parts and path.exists() else None


@dataclass(frozen=True)
class User:
    """Whose a token is, and what the token is good for."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()
    only_reads: tuple[str, ...] = ()  # organizations in which the user may not write
    scopes: Mapping[str, tuple[str, ...]] | None = None  # of a fine-grained token: owner -> permissions

    def may_write_under(self, owner: str) -> bool:
        """Whether this token may write to, and create, what `owner` has."""
        if self.scopes is not None and "repo.write" not in self.scopes.get(owner, ()):
            return False
        return self.role != "read" and owner in (self.name, *self.organizations)

    def may_read_under(self, owner: str) -> bool:
        """Whether this token may see what `owner` has and does not show to all."""
        return owner in (self.name, *self.organizations, *self.only_reads)


def entry_of(repository: Repository, commit: str, name: str) -> dict[str, Any]:
    """What the tree and paths-info say of a file or folder."""
    path = repository.folder / commit / name
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    content = path.read_bytes()
    if path.suffix not in LFS_SUFFIXES:
        return {"type": "file", "oid": _blob_id(content), "size": len(content), "path": name}
    digest = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    lfs = {"oid": digest, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "oid": _blob_id(pointer), "size": len(content), "lfs": lfs, "path": name}


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
