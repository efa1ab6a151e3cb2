"""Archives of images or recordings (.zip, .tar, .tar.gz, ...), unpacked once to the cache folder.

Only regular files are written, only inside the folder, and within size limits. An unpacked archive is identified by
the path, size and modification time of the archive; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import IO

from sft_hf.core.errors import DataError
from sft_hf.core.filesystem import storage_errors
from sft_hf.core.sources.wheels import cache_root
from sft_hf.data.loading.image_folders import SYSTEM_FOLDERS, is_system_path
from sft_hf.data.tables.files import table_stem

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ENDINGS = (".zip", *TAR_ENDINGS)
NOT_READ = (".rar", ".7z", ".tar.zst")

MAX_MEMBERS = 2_000_000
MAX_RATIO = 20
"""Media files hardly compress: an archive may unpack to this multiple of its size, plus `SLACK` bytes."""
SLACK = 2**30

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, RuntimeError, NotImplementedError)

Member = tuple[str, int, Callable[[], "IO[bytes] | None"]]


def is_archive(path: Path) -> bool:
    """Whether a file has the extension of an archive. Raises DataError for unsupported archives."""
    name = path.name.lower()
    if name.endswith(NOT_READ) and path.is_file():
        raise DataError(f"{path}: this kind of archive is not read; unpack it, or pack it as .zip or .tar")
    return name.endswith(ENDINGS) and path.is_file()


def archive_stem(path: Path) -> str:
    """Return the name of an archive without its extension."""
    ending = max((ending for ending in ENDINGS if path.name.lower().endswith(ending)), key=len)
    return path.name[: -len(ending)]


def holds_media(archive: Path) -> bool:
    """Whether a zip archive contains more than tables; assumed for other archives."""
    if not archive.name.lower().endswith(".zip"):
        return True
    with _plain_errors(archive), zipfile.ZipFile(archive) as file:
        names = [info.filename for info in file.infolist() if not info.is_dir()]
    return any(table_stem(name) is None and not name.lower().endswith((".txt", ".md")) for name in names)


def unpacked(archive: Path) -> tuple[Path, list[str]]:
    """Return the folder with the files of an archive, and notes. Raises DataError, StorageError."""

    def fill(root: Path) -> list[str]:
        return [f"{archive.name}: {_unpack(archive, root)}"]

    return _cached([archive], archive_stem(archive), fill)


def unpacked_together(folder: Path, archives: Sequence[Path]) -> tuple[Path, list[str]]:
    """Return a folder with the content of several archives, and the tables next to them: train.zip becomes train/.

    Shards (train-000.tar, train-001.tar) are subfolders of their split. Raises DataError, StorageError.
    """
    tables = [path for path in sorted(folder.iterdir()) if _is_table(path) and path not in archives]
    places = {path: _place(path, archives) for path in archives}

    def fill(root: Path) -> list[str]:
        notes = []
        for archive, place in places.items():
            (root / place).mkdir(parents=True, exist_ok=True)
            notes.append(f"{archive.name}: {_unpack(archive, root / place)}")
            _flatten(root / place, (archive_stem(archive), place.split("/")[0]))
        for table in tables:
            shutil.copyfile(table, root / table.name)
        return notes

    return _cached([*archives, *tables], folder.name, fill)


def _place(archive: Path, archives: Sequence[Path]) -> str:
    split = re.sub(r"(-\d+-of-\d+|[-_.]?\d+)$", "", archive_stem(archive)) or archive_stem(archive)
    shards = [path for path in archives if archive_stem(path).startswith(split)]
    return split if len(shards) == 1 else f"{split}/{archive_stem(archive)}"


def _flatten(folder: Path, names: Sequence[str]) -> None:
    """Move the content of a folder's only subfolder up one level if the subfolder is named like the archive."""
    children = list(folder.iterdir())
    if len(children) == 1 and children[0].is_dir() and children[0].name in names:
        inner = children[0].rename(folder.parent / f".{folder.name}-inner")
        folder.rmdir()
        inner.rename(folder)


def _cached(sources: Sequence[Path], name: str, fill: Callable[[Path], list[str]]) -> tuple[Path, list[str]]:
    """Return a cache folder called `name`, filled by `fill` now or earlier, and notes."""
    from filelock import FileLock

    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    home = cache_root() / "unpacked" / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    target = home / (name or "archive")
    with storage_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(home.name + ".lock")):
        if target.is_dir():
            return target, [f"{sources[0].name}: was unpacked earlier, into {target}"]
        with storage_errors(home):
            stage = Path(tempfile.mkdtemp(prefix="tmp-", dir=home))
        try:
            notes = fill(stage)
            with storage_errors(home):
                os.replace(stage, target)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return target, [f"{note} into {target}" for note in notes]


def _unpack(archive: Path, root: Path) -> str:
    """Write the files of an archive below `root`; return a description with their number and size."""
    limit = MAX_RATIO * archive.stat().st_size + SLACK
    count = total = 0
    members = _zip_members(archive) if archive.name.lower().endswith(".zip") else _tar_members(archive)
    with storage_errors(root), _plain_errors(archive):
        for name, size, opened in members:
            path = _safe(name, archive)
            count, total = count + 1, total + size
            if count > MAX_MEMBERS or total > limit:
                raise DataError(
                    f"{archive}: unpacks to more than {MAX_MEMBERS:,} files or {limit / 1e9:.1f} GB; if it is sound, "
                    "unpack it yourself and name the folder"
                )
            if not is_system_path(path):
                _write(opened(), root / path, size, archive)
    if not count:
        raise DataError(f"{archive}: holds no files")
    return f"{count} files ({total / 1e6:.1f} MB) unpacked"


def _write(source: IO[bytes] | None, target: Path, size: int, archive: Path) -> None:
    if source is None:
        return
    left = size
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, open(target, "wb") as file:
            while left > 0 and (block := source.read(min(left, 1 << 20))):
                file.write(block)
                left -= len(block)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{archive}: holds {target.name!r} both as a file and as a folder") from error
    if left:
        raise DataError(f"{archive}: is damaged: {target.name!r} is shorter than it says")


def inner_folder(folder: Path) -> Path | None:
    """Return the only entry of a folder if it is a folder with a table, as is common for packed data sets."""
    with os.scandir(folder) as entries:
        paths = [Path(entry) for entry in entries if not is_system_path(Path(entry.name))]
    paths = [path for path in paths if path.name not in SYSTEM_FOLDERS]
    if len(paths) != 1 or not paths[0].is_dir():
        return None
    return paths[0] if any(table_stem(path.name) and path.is_file() for path in paths[0].iterdir()) else None


def only_archives(folder: Path) -> list[Path]:
    """Return the archives of a folder that contains nothing but archives, tables and notes; else an empty list."""
    with os.scandir(folder) as entries:
        paths = sorted(Path(entry) for entry in entries if not is_system_path(Path(entry.name)))
    archives = [path for path in paths if is_archive(path) and holds_media(path)]
    rest = [path for path in paths if path not in archives]
    return archives if all(_is_table(path) or path.suffix.lower() in (".txt", ".md") for path in rest) else []


def _is_table(path: Path) -> bool:
    """Whether a file is a table, or an archive of tables only."""
    return path.is_file() and (table_stem(path.name) is not None or is_archive(path))


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{archive}: is encrypted; unpack it and name the folder")
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if not info.is_dir() and not link:
                yield info.filename, info.file_size, lambda info=info: file.open(info)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as file:
        for info in file:
            if info.isfile():
                yield info.name, info.size, lambda info=info: file.extractfile(info)  # type: ignore[misc]


def _safe(name: str, archive: Path) -> Path:
    """Return the relative path of a member. Raises DataError if it would be outside the folder."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or plain.startswith("/") or "\0" in name or re.match("[A-Za-z]:", plain):
        raise DataError(f"{archive}: holds {name[:200]!r}, which would be outside its folder; it is not unpacked")
    return Path(*parts)


@contextmanager
def _plain_errors(archive: Path) -> Iterator[None]:
    """Turn the exceptions of corrupt archives into DataError."""
    try:
        yield
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{archive}: is damaged or not the archive its ending says: {reason}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{archive}: is damaged: {' '.join(str(error).split())[:200]}") from error  # gzip, bzip2
