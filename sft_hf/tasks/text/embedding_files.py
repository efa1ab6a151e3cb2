"""Reading pretrained word vectors; only the vectors of words in the vocabulary are kept.

    text       GloVe, word2vec or fastText: a word and its numbers per line, optionally a first line with the counts
    binary     word2vec: the counts as text, then for each word the word, a space and 32-bit floats
    array      a folder with one .npy (words x dimensions) and one .parquet, whose only text column lists the words
    model2vec  a folder with model.safetensors (`embeddings`), tokenizer.json and config.json; all tokens are kept

The first two may be gzipped. Nothing is unpickled, and the length of lines and words is limited.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from sft_hf.core.errors import CheckpointError, StorageError
from sft_hf.core.filesystem import STORAGE_ERRNOS

if TYPE_CHECKING:
    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

MAX_LINE = 2**20  # bytes; 4096 numbers of 20 characters take a tenth of it
MAX_WORD = 2**10  # bytes of a word in a binary file

Kind = Literal["text", "binary", "array", "model2vec"]
_KINDS: dict[str, Kind] = {".txt": "text", ".vec": "text", ".bin": "binary"}
_COUNTS = re.compile(rb"([0-9]{1,12})[ \t]+([0-9]{1,6})\s*")


@dataclass(frozen=True)
class EmbeddingSource:
    """A source of word vectors that has not been read yet."""

    path: Path
    kind: Kind


class WordVectors(NamedTuple):
    """Unique `words` in the order of their source, and `matrix` float32 [words, dimensions]."""

    words: list[str]
    matrix: np.ndarray


def find_embeddings(source: Source) -> EmbeddingSource | None:
    """Return the word vectors of a source; None if it has none. Raises CheckpointError for a single .npy file."""
    path = source.path
    if path is None:
        return None
    if path.is_dir():
        if _is_model2vec(path):
            return EmbeddingSource(path, "model2vec")
        is_array = not (path / "config.json").exists() and next(path.glob("*.npy"), None) is not None
        return EmbeddingSource(path, "array") if is_array else None
    if path.suffix.lower() == ".npy":
        raise CheckpointError(
            f"{path}: a .npy file contains only vectors; give the folder with the .parquet file that lists the words"
        )
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind = _KINDS.get(plain.suffix.lower(), "text" if plain != path else None)
    return EmbeddingSource(path, kind) if kind else None


def read_vectors(
    source: EmbeddingSource, wanted: Collection[str], most_frequent: int, lowercase: bool, reserved: Collection[str]
) -> WordVectors:
    """Read the vectors of a text, binary or array source.

    Args:
        source: the result of `find_embeddings`.
        wanted: words to keep at any position.
        most_frequent: also keep the first N words; such files are sorted by frequency.
        lowercase: merge words that differ only in case, and use the vector of the most frequent of them.
        reserved: words to leave out.

    Raises:
        CheckpointError: the file is corrupt or of another kind; the message names the line or word.
        StorageError: the disk fails.
    """
    wanted, seen = set(wanted), set(reserved)
    kept: list[str] = []
    first = 0

    def keep(word: str) -> bool:
        nonlocal first
        is_reserved = word in reserved
        word = word.lower() if lowercase else word
        if is_reserved or word in seen or not word:
            return False
        if first >= most_frequent and word not in wanted:
            return False
        first += 1
        seen.add(word)
        kept.append(word)
        return True

    readers: dict[str, Callable[[Path, Callable[[str], bool]], Iterator[np.ndarray]]] = {
        "text": _text_vectors,
        "binary": _binary_vectors,
        "array": _array_vectors,
    }
    with _plain_errors(source.path), np.errstate(over="ignore"):
        rows = [np.asarray(row, dtype=np.float32) for row in readers[source.kind](source.path, keep)]
    if not rows:
        raise CheckpointError(f"{source.path}: holds no word vectors that could be used")
    matrix = np.stack(rows)
    damaged = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(damaged):
        raise CheckpointError(f"{source.path}: the vector of {kept[damaged[0]]!r} has numbers that are not finite")
    return WordVectors(kept, matrix)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CheckpointError(f"{path}: is damaged or not a gzip file: {_one_line(error)}") from error
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        raise CheckpointError(f"{path}: cannot be read: {_one_line(error)}") from error
    except (pa.ArrowException, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# --- text and binary files -----------------------------------------------------------------------------------


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("IO[bytes]", unpacked)


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield ("file: line n", line) for non-blank lines."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        where = f"{path}: line {number}"
        if len(line) > MAX_LINE:
            raise CheckpointError(f"{where} is longer than {MAX_LINE} bytes; a line is a word and its numbers")
        line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip()
        if line:
            yield where, line


def _text_vectors(path: Path, keep: Callable[[str], bool]) -> Iterator[np.ndarray]:
    announced, dimensions, count, undecodable = None, 0, 0, 0
    with _open(path) as file:
        for where, line in _lines(path, file):
            if not count and announced is None and (header := _COUNTS.fullmatch(line)):
                announced, dimensions = int(header[1]), int(header[2])
                continue
            dimensions = dimensions or line.count(b" ")
            word, numbers = _split_line(line, dimensions, where)
            count += 1
            try:
                wanted = keep(word.decode("utf-8"))
            except UnicodeDecodeError:  # cannot occur in a text; word2vec cuts long words inside a character
                wanted, undecodable = False, undecodable + 1
            if wanted or count == 1:
                row = _numbers(numbers, where)
                if wanted:
                    yield row
    if announced is not None and count < announced:
        raise CheckpointError(f"{path}: is cut short: it holds {count} words, and its first line says {announced}")
    if undecodable:
        log.info("%s: skipped %d words that are not valid UTF-8", path.name, undecodable)


def _split_line(line: bytes, dimensions: int, where: str) -> tuple[bytes, bytes]:
    """Return the word and its numbers as bytes. In some files, words contain spaces."""
    spaces = line.count(b" ")
    if not dimensions or spaces < dimensions:
        raise CheckpointError(f"{where}: expected a word and its {dimensions or ''} numbers, found {spaces}")
    if spaces == dimensions:
        word, _, numbers = line.partition(b" ")
        return word, numbers
    word, *fields = line.rsplit(b" ", dimensions)
    if _is_number(word.rpartition(b" ")[2]):
        raise CheckpointError(f"{where} has more than {dimensions} numbers")
    return word, b" ".join(fields)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbers(text: bytes, where: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            row = np.array([float(field) for field in text.split(b" ")]).astype(np.float32)
    except ValueError as error:
        raise CheckpointError(f"{where}: expected a word and its vector: {_one_line(error)[:100]}") from error
    if not np.isfinite(row).all():
        raise CheckpointError(f"{where} has numbers that are not finite")
    return row


def _binary_vectors(path: Path, keep: Callable[[str], bool]) -> Iterator[np.ndarray]:
    with _open(path) as file:
        header = _COUNTS.fullmatch(file.readline(MAX_WORD))
        if header is None or not int(header[2]):
            raise CheckpointError(
                f"{path}: is not a word2vec file: it does not begin with the number of words and of dimensions; "
                "of a fastText model use the .vec file"
            )
        count, size = int(header[1]), 4 * int(header[2])
        for number in range(1, count + 1):
            word = b""
            while (byte := file.read(1)) not in (b" ", b"") and len(word) <= MAX_WORD:
                word += byte
            numbers = file.read(size)
            if len(word) > MAX_WORD or len(numbers) < size:
                raise CheckpointError(f"{path}: is damaged or cut short at word {number} of {count}")
            if keep(word.strip().decode("utf-8", errors="replace")):
                yield np.frombuffer(numbers, dtype="<f4")


# --- folders -------------------------------------------------------------------------------------------------


def _array_vectors(path: Path, keep: Callable[[str], bool]) -> Iterator[np.ndarray]:
    arrays, tables = sorted(path.glob("*.npy")), sorted(path.glob("*.parquet"))
    if len(arrays) != 1 or len(tables) != 1:
        raise CheckpointError(
            f"{path}: holds {len(arrays)} .npy and {len(tables)} .parquet files; expected one of each: "
            "the vectors and their words"
        )
    with _plain_errors(arrays[0]):
        matrix = np.load(arrays[0], mmap_mode="r", allow_pickle=False)
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise CheckpointError(f"{arrays[0]}: expected floats [words, dimensions], not {matrix.dtype} {matrix.shape}")
    with _plain_errors(tables[0]):
        table = pq.read_table(tables[0])
    columns = [field.name for field in table.schema if field.type in (pa.string(), pa.large_string())]
    if len(columns) != 1 or table.num_rows != len(matrix):
        raise CheckpointError(
            f"{tables[0]}: has {len(columns)} text columns and {table.num_rows} rows; expected one column with the "
            f"words of the {len(matrix)} rows of {arrays[0].name}"
        )
    for index, word in enumerate(table[columns[0]].to_pylist()):
        if word is not None and keep(word):
            yield matrix[index]


def _is_model2vec(folder: Path) -> bool:
    """Whether a folder is a model2vec model, by its config, or by its weights if the config has no `model_type`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "model_type" in config:
            return bool(config["model_type"] == "model2vec")
        with safe_open(folder / "model.safetensors", framework="pt") as tensors:
            return "embeddings" in tensors.keys()  # noqa: SIM118
    except (OSError, ValueError, TypeError, SafetensorError):
        return False


def read_model2vec(source: EmbeddingSource) -> tuple[Tokenizer, np.ndarray]:
    """Return a model2vec tokenizer, without special tokens, truncation and padding, and float32 [tokens, dimensions].

    A quantized vocabulary (`mapping`) and token weights (`weights`) are applied to the vectors.
    Raises CheckpointError, StorageError.
    """
    weights_file, tokenizer_file = source.path / "model.safetensors", source.path / "tokenizer.json"
    with _plain_errors(weights_file), safe_open(weights_file, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "embeddings" not in tensors or tensors["embeddings"].ndim != 2:
        raise CheckpointError(f"{weights_file}: has no matrix `embeddings`; it holds {', '.join(tensors) or 'nothing'}")
    matrix = tensors["embeddings"].float().numpy()
    if "mapping" in tensors:
        rows = tensors["mapping"].long().numpy()
        if rows.ndim != 1 or (rows < 0).any() or (rows >= len(matrix)).any():
            raise CheckpointError(f"{weights_file}: `mapping` points outside of `embeddings`")
        matrix = matrix[rows]
    if "weights" in tensors:
        if tuple(tensors["weights"].shape) != matrix.shape[:1]:
            raise CheckpointError(f"{weights_file}: `weights` does not have one number per token")
        matrix = matrix * tensors["weights"].float().numpy()[:, None]
    if not np.isfinite(matrix).all():
        raise CheckpointError(f"{weights_file}: has numbers that are not finite")
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises no specific exception
        raise CheckpointError(f"{tokenizer_file}: cannot be read: {_one_line(error)}") from error
    if tokenizer.get_vocab_size() != len(matrix):
        raise CheckpointError(
            f"{source.path}: {tokenizer.get_vocab_size()} tokens in tokenizer.json, but {len(matrix)} vectors"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.post_processor = None
    return tokenizer, np.ascontiguousarray(matrix)
