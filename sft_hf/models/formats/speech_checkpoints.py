"""Speech checkpoints in formats that are not Transformers' own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from filelock import FileLock

from sft_hf.core.filesystem import sha256_of, storage_errors
from sft_hf.core.sources.wheels import cache_root

if TYPE_CHECKING:
    from sft_hf.core.sources.sources import Source


def transformers_source(source: Source) -> Source:
    """Return the source; for a checkpoint in CTranslate2's format, its conversion in the cache, made if it is missing.

    Raises CheckpointError, StorageError.
    """
    from sft_hf.models.formats.ctranslate2 import convert_whisper, is_ctranslate2

    if source.path is None or not source.path.is_dir() or not is_ctranslate2(source.path):
        return source
    target = cache_root() / "converted" / f"whisper-{sha256_of(source.path / 'model.bin')[:16]}"
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").is_file():
                convert_whisper(source.path, target)
    return replace(source, path=target)
