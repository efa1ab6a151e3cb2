"""A writer of what CTranslate2 writes: model.bin with the weights of a Whisper, and its tokenizer.json."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from transformers import WhisperForConditionalGeneration

TYPE_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
SPECIALS = "startoftranscript en zh de translate transcribe startoflm startofprev nocaptions notimestamps".split()
Variables = dict[str, np.ndarray]


def token_list(multilingual: bool) -> list[str]:
    """Tokens as Whisper has them, in number and in place, with stand-ins for most words and languages."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = [*bytes_to_unicode().values(), "Ġa", "Ġab"]
    words += [f"word{index}" for index in range(len(words), 50256 + multilingual)]
    languages = [f"language{index}" for index in range(96)]
    specials = [*SPECIALS[:4], *languages, *SPECIALS[4:]]
    return [*words, *(f"<|{name}|>" for name in ("endoftext", *specials))]


def write_tokenizer(path: Path, multilingual: bool) -> None:
    tokens = token_list(multilingual)
    end = tokens.index("<|endoftext|>")
    vocab = {token: index for index, token in enumerate(tokens[: end + 1])}
    added = [{"id": index, "content": token, "special": True} for index, token in enumerate(tokens) if index >= end]
    data = {"model": {"vocab": vocab, "merges": ["Ġ a", "Ġa b"]}, "added_tokens": added}
    path.write_text(json.dumps(data), encoding="utf-8")


def string(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def dump(variables: Variables, *, version: int = 6, spec: str = "WhisperSpec") -> bytes:
    """A model.bin, in which an array equal to an earlier one is an alias, as CTranslate2 writes it."""
    written: Variables = {}
    aliases = {}
    for name in sorted(variables):
        value = variables[name]
        same = (
            first
            for first, other in written.items()
            if value.ndim and value.dtype == other.dtype and np.array_equal(value, other)
        )
        if (first := next(same, None)) is not None:
            aliases[name] = first
        else:
            written[name] = value
    out = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(written))
    for name, value in written.items():
        head = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += string(name) + head + struct.pack("<BI", TYPE_IDS[str(value.dtype)], value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(string(alias) + string(name) for alias, name in aliases.items())


def fuse(model: WhisperForConditionalGeneration, dtype: str = "float32") -> Variables:
    """The model's weights, by CTranslate2's names."""
    weights = {key: value.numpy().astype(dtype) for key, value in model.state_dict().items()}
    config = model.config
    out: Variables = {
        "decoder/embeddings/weight": weights["model.decoder.embed_tokens.weight"],
        "decoder/projection/weight": weights["proj_out.weight"],
        "decoder/alignment_heads": np.int16(1),
        "decoder/activation": np.int8(3),
        "decoder/pre_norm": np.int8(1),
        "decoder/scale_embeddings": np.int8(0),
        "encoder/num_heads": np.int16(config.encoder_attention_heads),
        "decoder/num_heads": np.int16(config.decoder_attention_heads),
    }

    def put(name: str, *modules: str) -> None:
        norm = "layer_norm" in name
        rows = [weights[f"model.{module}.weight"] for module in modules]
        zeros = np.zeros(config.d_model, dtype)
        biases = [weights.get(f"model.{module}.bias", zeros) for module in modules]
        out[f"{name}/{'gamma' if norm else 'weight'}"] = np.concatenate(rows)
        out[f"{name}/{'beta' if norm else 'bias'}"] = np.concatenate(biases)

    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    for side, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        out[f"{side}/position_encodings/encodings"] = weights[f"model.{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        for index in range(count):
            theirs, ours = f"{side}/layer_{index}", f"{side}.layers.{index}"
            put(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            put(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{one}_proj" for one in "qkv"))
            put(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            put(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            put(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            put(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            if side == "decoder":
                put(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                put(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                put(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{one}_proj" for one in "kv"))
                put(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
    return out
