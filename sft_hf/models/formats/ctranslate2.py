"""Conversion of Whisper models in CTranslate2's format (faster-whisper) to a folder that `from_pretrained` opens.

Such a folder has `model.bin` with the weights, `config.json` with lists of token ids, and `tokenizer.json`. The layout
of `model.bin` is that of CTranslate2's `python/ctranslate2/specs/model_spec.py` (`ModelSpec._serialize`) and
`src/models/model.cc` (`Model::load`), all numbers little-endian:

    u32 binary version (4 to 6), string spec name, u32 spec revision
    u32 count, and that many variables: string name, u8 rank, u32 size of each dimension, u8 data type,
        u32 length of the data in bytes, the data
    u32 count, and that many aliases: string alias, string name of its variable

A string is a u16 length, then that many bytes, the last of them zero. Variables of equal content are written once and
aliased. The file contains no code, and nothing is read outside its bounds.

The conversion is exact: 16-bit floats become 32-bit floats of the same value. CTranslate2 concatenates the attention
projections (query, key and value, or key and value) along the rows; they are split again.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from transformers import WhisperConfig
from transformers.utils import cached_file

from sft_hf.core.errors import CheckpointError
from sft_hf.core.filesystem import committed_folder, sha256_of, storage_errors
from sft_hf.core.sources.wheels import cache_root
from sft_hf.models.formats.whisper_vocabulary import FIRST_MULTILINGUAL, read_generation_config, read_tokenizer
from sft_hf.models.loading import checkpoint_errors, quiet_transformers

if TYPE_CHECKING:
    from typing import NoReturn

    from sft_hf.core.sources.sources import Source

WEIGHTS = "model.bin"
VERSIONS = range(4, 7)  # before 4, the data type of a variable was not stored
# CTranslate2's enum DataType (include/ctranslate2/types.h); a bfloat16 is the upper half of a float32.
_DTYPES = (
    ("float32", "<f4"),
    ("int8", "<i1"),
    ("int16", "<i2"),
    ("int32", "<i4"),
    ("float16", "<f2"),
    ("bfloat16", "<u2"),
)
_FLOATS = ("float32", "float16", "bfloat16")
_MAX_RANK = 8  # real models use up to 3

# CTranslate2's switches for the computation of a Whisper decoder. 3 is the exact GELU.
_SWITCHES = {"activation": 3, "pre_norm": 1, "alibi": 0, "scale_embeddings": 0, "start_from_zero_embedding": 0}
# CTranslate2's name of a layer's part -> the modules whose rows it concatenates.
_ENCODER_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_DECODER_LAYER = {
    **_ENCODER_LAYER,
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
_EMBEDDINGS = "decoder/embeddings/weight"
_PROJECTION = "decoder/projection/weight"

_FRAMES_PER_SECOND = 50  # of the encoder's output


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder is a model in CTranslate2's format: `model.bin`, and no weights of Transformers."""
    others = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return (folder / WEIGHTS).is_file() and not any((folder / name).exists() for name in others)


def transformers_source(source: Source) -> Source:
    """Return the source; for a model in CTranslate2's format, its conversion in the cache, created if missing.

    Raises CheckpointError, StorageError.
    """
    folder = source.path or _hub_folder(source)
    if folder is None or not folder.is_dir() or not is_ctranslate2(folder):
        return source
    target = cache_root() / "converted" / f"whisper-{sha256_of(folder / WEIGHTS)[:16]}"
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").is_file():
                convert_whisper(folder, target)
    return replace(source, path=target)


def _hub_folder(source: Source) -> Path | None:
    """Return the folder in the Hub's cache of a model in CTranslate2's format; None for one in Transformers' format."""
    with checkpoint_errors(source, "config.json"):
        config = cached_file(source.name, "config.json", revision=source.revision or "main")
        if "model_type" in json.loads(Path(str(config)).read_text(encoding="utf-8")):
            return None
    with checkpoint_errors(source, WEIGHTS):
        for file in ("tokenizer.json", WEIGHTS):
            found = cached_file(source.name, file, revision=source.revision or "main")
    return Path(str(found)).parent


def convert_whisper(folder: Path, target: Path) -> None:
    """Convert a Whisper model from CTranslate2 to a Transformers folder, exactly, in float32.

    Args:
        folder: contains model.bin, config.json and tokenizer.json; not modified.
        target: the folder to write, replaced atomically.

    Raises:
        CheckpointError: a file is missing, damaged, quantized, or not of a Whisper model.
        StorageError: the target cannot be written.
    """
    from safetensors.numpy import save_file
    from transformers import (
        WhisperFeatureExtractor,
        WhisperProcessor,
    )  # takes seconds to import; most runs convert nothing

    variables = _Variables(folder / WEIGHTS)
    config = _config(variables)
    state = _state_dict(variables, config)
    tokenizer = read_tokenizer(folder / "tokenizer.json", config.vocab_size)
    generation = read_generation_config(folder / "config.json", config, tokenizer)
    seconds = config.max_source_positions // _FRAMES_PER_SECOND
    features = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
    with committed_folder(target) as stage, quiet_transformers():
        config.save_pretrained(stage)
        generation.save_pretrained(stage)
        WhisperProcessor(features, tokenizer).save_pretrained(stage)
        save_file(state, stage / "model.safetensors", metadata={"format": "pt"})


class _Variables:
    """The variables of a model.bin, checked on access."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                # Mapped, since a large model has 3 GB. An empty file cannot be mapped.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        except OSError as error:
            self.refuse(f"cannot be read: {error.strerror or error}")
        self._data = memoryview(data)
        self._at = 0
        version = self._number("I")
        if version not in VERSIONS:
            known = f"{VERSIONS[0]} to {VERSIONS[-1]} are known"
            self.refuse(f"is not a CTranslate2 file, or has an unknown version ({version}; {known})")
        spec, _revision = self._string(), self._number("I")
        if spec != "WhisperSpec":
            self.refuse(f"holds a {spec[:60]!r}; only WhisperSpec is converted")
        self._arrays: dict[str, tuple[str, npt.NDArray[Any]]] = {}
        for _ in range(self._number("I")):
            name, dtype, array = self._variable()
            if name in self._arrays:
                self.refuse(f"is damaged: {name!r} is listed twice")
            self._arrays[name] = dtype, array
        for _ in range(self._number("I")):
            alias, name = self._string(), self._string()
            if name not in self._arrays or alias in self._arrays:
                self.refuse(f"is damaged: {alias!r} cannot stand for {name!r}")
            self._arrays[alias] = self._arrays[name]
        if rest := len(self._data) - self._at:
            self.refuse(f"is damaged: {rest} bytes follow its end")
        self.unused = {name for name, (_, array) in self._arrays.items() if array.ndim}

    def refuse(self, why: str) -> NoReturn:
        """Raise CheckpointError for this file."""
        raise CheckpointError(f"{self.path}: {why}")

    def names(self) -> Iterator[str]:
        """Return all names, including aliases."""
        return iter(self._arrays)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a variable with `rank` dimensions. Raises CheckpointError."""
        _, array = self._find(name)
        if array.ndim != rank:
            self.refuse(f"variable {name!r} has shape {list(array.shape)}, where {rank} dimensions are needed")
        return array.shape

    def integer(self, name: str, default: int | None = None) -> int:
        """Return the value of a scalar. Raises CheckpointError."""
        if default is not None and name not in self._arrays:
            return default
        dtype, array = self._find(name)
        if array.ndim or not dtype.startswith("int"):
            self.refuse(f"variable {name!r} is not a whole number, but {dtype} of shape {list(array.shape)}")
        return int(array)

    def float32(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return the exact values of a variable, and mark it as used. Raises CheckpointError."""
        dtype, array = self._find(name)
        self.unused.discard(name)
        if array.ndim and dtype in ("int8", "int16"):
            self.refuse(
                f"variable {name!r} is quantized to {dtype}, and the values that were rounded are gone: use the "
                "original model, or convert it for CTranslate2 with --quantization float16"
            )
        if dtype not in _FLOATS:
            self.refuse(f"variable {name!r} is {dtype}; {', '.join(_FLOATS)} can be converted")
        if array.shape != shape:
            self.refuse(f"variable {name!r} has shape {list(array.shape)}; the others need {list(shape)}")
        if dtype == "bfloat16":
            return (array.astype("<u4") << 16).view("<f4")
        return array.astype(np.float32)

    def _find(self, name: str) -> tuple[str, npt.NDArray[Any]]:
        if name not in self._arrays:
            self.refuse(f"variable {name!r} is missing; the Whisper model is incomplete")
        return self._arrays[name]

    def _take(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._data):
            lacks = f"{end - len(self._data)} bytes are missing at its end, or more"
            self.refuse(f"is damaged or cut off: {lacks}")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]

    def _string(self) -> str:
        raw = bytes(self._take(self._number("H")))
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = ""
        if not text.endswith("\0") or not text[:-1].isprintable():
            self.refuse(f"is damaged: {raw[:60]!r} is not a name")
        return text[:-1]

    def _variable(self) -> tuple[str, str, npt.NDArray[Any]]:
        name = self._string()
        rank = self._number("B")
        shape = [self._number("I") for _ in range(rank)]
        type_id = self._number("B")
        raw = self._take(self._number("I"))
        if type_id >= len(_DTYPES):
            known = ", ".join(f"{number} {dtype}" for number, (dtype, _) in enumerate(_DTYPES))
            self.refuse(f"variable {name!r} has the unknown data type {type_id} (known are {known})")
        dtype, code = _DTYPES[type_id]
        size = math.prod(shape) * np.dtype(code).itemsize
        if rank > _MAX_RANK or not size:
            self.refuse(f"is damaged: variable {name!r} has {rank} dimensions of the sizes {shape[:_MAX_RANK]}")
        if size != len(raw):
            self.refuse(f"is damaged: variable {name!r}, {dtype} of shape {shape}, has {len(raw)} bytes, not {size}")
        return name, dtype, np.frombuffer(raw, code).reshape(shape)


def _config(variables: _Variables) -> WhisperConfig:
    """Return a config with the model's dimensions, derived from the shapes."""
    for name, right in _SWITCHES.items():
        if (value := variables.integer(f"decoder/{name}", right)) != right:
            variables.refuse(f"decoder/{name} is {value}, and {right} in every Whisper model")
    d_model, mel_bins, _ = variables.shape("encoder/conv1/weight", 3)
    vocab_size, _ = variables.shape(_EMBEDDINGS, 2)
    dims: dict[str, Any] = {}
    for side, positions in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        found = {match[1] for name in variables.names() if (match := re.match(rf"{side}/layer_(\d+)/", name))}
        heads = variables.integer(f"{side}/num_heads")
        if heads < 1 or d_model % heads or d_model % 2:
            variables.refuse(f"{side}/num_heads is {heads}, which does not divide the width {d_model}")
        dims[f"{side}_layers"] = len(found)
        dims[f"{side}_attention_heads"] = heads
        dims[f"{side}_ffn_dim"] = variables.shape(f"{side}/layer_0/ffn/linear_0/weight", 2)[0]
        dims[positions] = variables.shape(f"{side}/position_encodings/encodings", 2)[0]
    if dims["max_source_positions"] % _FRAMES_PER_SECOND:
        why = f"{dims['max_source_positions']} encoder positions are not a whole number of seconds"
        variables.refuse(f"{why} ({_FRAMES_PER_SECOND} are one second)")
    multilingual = int(vocab_size >= FIRST_MULTILINGUAL)
    end = 50256 + multilingual
    return WhisperConfig(
        d_model=d_model,
        num_mel_bins=mel_bins,
        vocab_size=vocab_size,
        **dims,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
        begin_suppress_tokens=None,  # set in the generation config
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
    )


def _names(config: WhisperConfig) -> dict[str, tuple[str, ...]]:
    """Return {CTranslate2's name: the keys whose rows it concatenates} for all variables of the model."""
    names: dict[str, tuple[str, ...]] = {_EMBEDDINGS: ("model.decoder.embed_tokens.weight",)}
    modules: dict[str, tuple[str, ...]] = {"encoder/conv1": ("encoder.conv1",), "encoder/conv2": ("encoder.conv2",)}
    layers = (("encoder", config.encoder_layers, _ENCODER_LAYER), ("decoder", config.decoder_layers, _DECODER_LAYER))
    for side, count, parts in layers:
        names[f"{side}/position_encodings/encodings"] = (f"model.{side}.embed_positions.weight",)
        modules[f"{side}/layer_norm"] = (f"{side}.layer_norm",)
        for index in range(count):
            for part, fused in parts.items():
                modules[f"{side}/layer_{index}/{part}"] = tuple(f"{side}.layers.{index}.{module}" for module in fused)
    for module, keys in modules.items():
        words = ("gamma", "beta") if module.endswith("layer_norm") else ("weight", "bias")
        for theirs, ours in zip(words, ("weight", "bias"), strict=True):
            names[f"{module}/{theirs}"] = tuple(f"model.{key}.{ours}" for key in keys)
    return names


def _state_dict(variables: _Variables, config: WhisperConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Return all weights under Transformers' keys. Sets `tie_word_embeddings` of the config."""
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state: dict[str, npt.NDArray[np.float32]] = {}
    for name, keys in _names(config).items():
        # The key projection has no bias; where it is fused with others, CTranslate2 stores zeros.
        parts = [(key, shapes.get(key) or (config.d_model,)) for key in keys]
        whole = variables.float32(name, (sum(shape[0] for _, shape in parts), *parts[0][1][1:]))
        start = 0
        for key, shape in parts:
            rows = whole[start : start + shape[0]]
            start += shape[0]
            if key in shapes:
                state[key] = rows
            elif rows.any():
                variables.refuse(f"variable {name!r}: the keys have a bias, which Whisper does not have")
    output = variables.float32(_PROJECTION, shapes["proj_out.weight"])
    if not np.array_equal(output, state["model.decoder.embed_tokens.weight"], equal_nan=True):
        config.tie_word_embeddings = False
        state["proj_out.weight"] = output
    if variables.unused:
        variables.refuse(f"variable {min(variables.unused)!r} has no place in a Whisper model of these dimensions")
    return state
