"""Tokenizer and generation settings of a Whisper model in CTranslate2's format, see `ctranslate2`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AddedToken, GenerationConfig, WhisperConfig, WhisperTokenizer

from sft_hf.core.errors import CheckpointError

END = "<|endoftext|>"  # also used as start and padding token
TIMESTAMPS = 1501  # <|0.00|> to <|30.00|>
FIRST_MULTILINGUAL = 51865  # tokens, as in Whisper's code; the English models have one fewer


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError; `hint` is the advice for a missing file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file{hint}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not a JSON file: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return data


def read_tokenizer(path: Path, vocab_size: int) -> WhisperTokenizer:
    """Return a Whisper tokenizer with the vocabulary and merges of a tokenizer.json and a token for each timestamp.

    Old tokenizer.json files lack the timestamps, which come last in the model's vocabulary.
    """
    data = read_json(path, "; copy it from the original model (vocabulary.txt alone has no merges)")
    timestamps = [f"<|{index * 0.02:.2f}|>" for index in range(TIMESTAMPS)]
    try:
        model, added = data["model"], sorted(data["added_tokens"], key=lambda token: token["id"])
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        expected = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        first = expected["<|notimestamps|>"] + 1
        expected |= {token: first + index for index, token in enumerate(timestamps)}
        specials = [token["content"] for token in added if token["id"] < first and token["content"] != END]
        tokenizer = WhisperTokenizer(model["vocab"], merges, pad_token=END, extra_special_tokens=specials)
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in timestamps])
        same = tokenizer.get_vocab() == expected
    except KeyError as error:
        raise CheckpointError(f"{path}: is not a tokenizer of Whisper: it has no {error}") from error
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: is not a tokenizer of Whisper: {error}") from error
    if not same or sorted(expected.values()) != list(range(vocab_size)):
        why = f"its {len(expected)} tokens, timestamps included, are not the {vocab_size} that model.bin has"
        raise CheckpointError(f"{path}: {why}; it is the tokenizer of another model")
    return tokenizer


def read_generation_config(path: Path, config: WhisperConfig, tokenizer: WhisperTokenizer) -> GenerationConfig:
    """Return the generation config: which tokens start a transcript, and which are suppressed."""
    data = read_json(path)

    def ids(key: str) -> list[int] | None:
        value = data.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(one) is int and 0 <= one < config.vocab_size for one in value):
            raise CheckpointError(f"{path}: {key} is not a list of token ids below {config.vocab_size}")
        return value

    heads = data.get("alignment_heads")
    limits = (config.decoder_layers, config.decoder_attention_heads)
    if heads is not None and not (isinstance(heads, list) and all(_is_place(head, limits) for head in heads)):
        raise CheckpointError(f"{path}: alignment_heads is not a list of [layer, head] below {list(limits)}")
    known = tokenizer.get_vocab()
    start = config.decoder_start_token_id
    wanted = {END: config.eos_token_id, "<|startoftranscript|>": start}
    for token, token_id in wanted.items():
        if known.get(token) != token_id:
            why = f"{token} is token {known.get(token)}, and {token_id} in a Whisper of {config.vocab_size} tokens"
            raise CheckpointError(f"{path.parent / 'tokenizer.json'}: {why}")
    settings: dict[str, Any] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": start,
        "no_timestamps_token_id": known["<|notimestamps|>"],
        "prev_sot_token_id": known.get("<|startofprev|>"),
        "suppress_tokens": ids("suppress_ids"),
        "begin_suppress_tokens": ids("suppress_ids_begin"),
        "max_length": config.max_target_positions,
        "max_initial_timestamp_index": 50,  # as in OpenAI's models: speech starts in the first second
        "return_timestamps": False,
        "is_multilingual": config.vocab_size >= FIRST_MULTILINGUAL,
    }
    if heads:
        settings["alignment_heads"] = heads
    if settings["is_multilingual"]:
        # Languages are between the start token and the two tasks. `lang_ids` in config.json is not always right.
        tasks = {task: known[f"<|{task}|>"] for task in ("translate", "transcribe") if f"<|{task}|>" in known}
        if len(tasks) < 2:
            raise CheckpointError(f"{path.parent / 'tokenizer.json'}: it lacks <|translate|> or <|transcribe|>")
        languages = range(start + 1, min(tasks.values()))
        settings["lang_to_id"] = {token: number for token, number in known.items() if number in languages}
        settings |= {"task_to_id": tasks, "task": "transcribe"}
    return GenerationConfig(**settings)


def _is_place(value: object, limits: tuple[int, ...]) -> bool:
    """Whether `value` is a list of integers, each from 0 to below its limit."""
    if not isinstance(value, list) or len(value) != len(limits):
        return False
    return all(type(one) is int and 0 <= one < limit for one, limit in zip(value, limits, strict=True))
