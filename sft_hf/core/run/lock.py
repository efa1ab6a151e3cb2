"""One run in a folder at a time: the second is refused, and told whose the first is.

The lock is the kernel's (flock), so it ends with its process however that dies; a file beside it names the owner.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

from filelock import FileLock, Timeout

from sft_hf.core.errors import RunFolderError
from sft_hf.core.filesystem import storage_errors

LOCK, OWNER = ".lock", ".lock.owner"


class RunLock:
    """The lock of a run folder; reentrant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take the lock; in a folder that does not exist yet, do nothing. Raises RunFolderError, StorageError."""
        if self._lock.is_locked or not self.folder.is_dir():
            return
        with storage_errors(self.folder):
            try:
                self._lock.acquire()
            except Timeout:
                raise RunFolderError(
                    f"{self.folder}: another run is working in it ({self._owner()}); wait for it, stop it, or choose "
                    "another folder with --output-dir"
                ) from None
            (self.folder / OWNER).write_text(json.dumps(_myself()), encoding="utf-8")

    def release(self) -> None:
        """Give the lock back, and leave no file behind."""
        if not self._lock.is_locked:
            return
        for name in (OWNER, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        self._lock.release()

    def _owner(self) -> str:
        try:
            owner = json.loads((self.folder / OWNER).read_text(encoding="utf-8"))
            return f"process {int(owner['pid'])} on {owner['host']!s:.100}, since {owner['since']!s:.30}"
        except (OSError, ValueError, KeyError, TypeError):
            return "owner unknown"


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
