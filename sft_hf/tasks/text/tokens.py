"""Tokenized texts: flat arrays, truncated to the model's limit, and cached for other runs on the same texts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from sft_hf.core.console import progress
from sft_hf.data.row_cache import RowCache, qualified_name

TOKENIZE_CHUNK = 1000


class TokenTable(Sequence[dict[str, Any]]):
    """Tokenized rows in one flat array per field, to avoid a Python list per row."""

    def __init__(self, lengths: np.ndarray, fields: dict[str, np.ndarray], labels: Sequence[Any] | None = None) -> None:
        """`lengths`: number of tokens of each row, int64 [rows]; `fields`: values for all tokens, int32 [tokens]."""
        self.lengths, self._flat, self._labels = lengths, fields, labels
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        span = slice(self._offsets[index], self._offsets[index + 1])
        row: dict[str, Any] = {name: flat[span] for name, flat in self._flat.items()}
        if self._labels is not None:
            row["labels"] = self._labels[index]
        return row


def open_token_cache(tokenizer: Any, max_length: int, gigabytes: float) -> RowCache | None:
    """Return the cache of this tokenizer's tokens; None if the tokenizer cannot be fully identified."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in pure Python
        return None
    pipeline = json.loads(backend.to_str())
    for name in ("truncation", "padding"):  # the state of the last call
        pipeline.pop(name, None)
    made_by = {
        "class": qualified_name(tokenizer),
        "pipeline": hashlib.sha256(json.dumps(pipeline, sort_keys=True).encode()).hexdigest(),
        "inputs": tokenizer.model_input_names,
        "sides": [tokenizer.truncation_side, tokenizer.padding_side],
        "split_special_tokens": tokenizer.split_special_tokens,
        "max_length": max_length,
        "special_tokens_in_texts": "text",
    }
    return RowCache("tokens", made_by, ("transformers", "tokenizers"), gigabytes)


def tokenize(
    tokenizer: Any,
    columns: Sequence[Sequence[str]],
    max_length: int,
    where: str,
    labels: Sequence[Any] | None = None,
    cache: RowCache | None = None,
    row_ids: Sequence[int] | np.ndarray | None = None,
) -> tuple[TokenTable, list[str]]:
    """Return rows as tokens, and notes on truncated rows and special tokens in texts.

    Args:
        columns: the texts, and for pairs the second texts.
        where: name of the split, for messages.
        cache: from `open_token_cache`, with the same tokenizer and length.
        row_ids: numbers of the rows, for messages.
    """
    name = _digest(columns) if cache else ""
    found = cache.find(name) if cache else None
    if found is None:
        found = _encode_all(tokenizer, columns, max_length, where)
        if cache:
            cache.keep(name, found)
            cache.flush()
    names, lengths, lost, escaped, *flat = found
    table = TokenTable(lengths, dict(zip(json.loads(names.tobytes()), flat, strict=True)), labels)
    return table, [*_notes(table, lost, max_length, where), *_notes_on_escaped(tokenizer, escaped, where, row_ids)]


def forget_last_call(tokenizer: Any) -> None:
    """Reset truncation and padding of a tokenizer's last call, which would be saved in its file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def _encode_all(tokenizer: Any, columns: Sequence[Sequence[str]], max_length: int, where: str) -> list[np.ndarray]:
    """Return the field names (JSON as uint8), the tokens and the truncated tokens of each row (int64), the rows with
    special tokens in their texts (int64), and the flat fields.
    """
    fields: dict[str, list[np.ndarray]] = {"input_ids": []}
    lost, escaped = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    total = len(columns[0])
    special = SpecialTokens(tokenizer, pairs=len(columns) > 1)
    for start in progress(range(0, total, TOKENIZE_CHUNK), f"tokenizing {where}", total // TOKENIZE_CHUNK + 1):
        texts = [list(column[start : start + TOKENIZE_CHUNK]) for column in columns]
        encoded, cut, changed = _encode(tokenizer, texts, max_length, special)
        lost.append(cut)
        escaped.append(np.array(changed, dtype=np.int64) + start)
        for name, rows in encoded.items():
            fields.setdefault(name, []).extend(np.asarray(row, dtype=np.int32) for row in rows)
    lengths = np.array([len(row) for row in fields["input_ids"]], dtype=np.int64)
    names = np.frombuffer(json.dumps(list(fields)).encode(), np.uint8).copy()
    flat = [np.concatenate(rows or [np.empty(0, np.int32)]) for rows in fields.values()]
    return [names, lengths, np.concatenate(lost), np.concatenate(escaped), *flat]


def _encode(
    tokenizer: Any, texts: Sequence[list[str]], max_length: int, special: SpecialTokens
) -> tuple[dict[str, list[list[int]]], np.ndarray, list[int]]:
    """Return the tokens by field, the number of truncated tokens per row, and the rows with special tokens as text.

    Only truncated rows, and rows with such tokens, are tokenized twice.
    """
    options = {"return_attention_mask": False, "verbose": False}
    encoded = dict(tokenizer(*texts, truncation=False, **options))
    escaped = {
        index: [special.escape(column[index]) for column in texts]
        for index in special.spelled_out(encoded["input_ids"])
    }
    spelled = [index for index, row in escaped.items() if row != [column[index] for column in texts]]
    if spelled:
        for index in spelled:
            for column, text in zip(texts, escaped[index], strict=True):
                column[index] = text
        again = tokenizer(*([column[index] for index in spelled] for column in texts), truncation=False, **options)
        for name, rows in again.items():
            for index, row in zip(spelled, rows, strict=True):
                encoded[name][index] = row
    lengths = np.array([len(row) for row in encoded["input_ids"]], dtype=np.int64)
    long = np.flatnonzero(lengths > max_length).tolist()
    lost = np.zeros_like(lengths)
    if long:
        cut = [[column[index] for index in long] for column in texts]
        short = tokenizer(*cut, truncation=True, max_length=max_length, **options)
        for name, rows in short.items():
            for index, row in zip(long, rows, strict=True):
                encoded[name][index] = row
        lost[long] = lengths[long] - [len(row) for row in short["input_ids"]]
    return encoded, lost, spelled


class SpecialTokens:
    """A tokenizer's structural tokens ([CLS], </s>, <pad>), which are escaped if they occur in a text.

    A tokenizer would treat them as the tokens themselves: a text with </s> would end there, also for BART's classifier.
    Other added tokens ([E1] around an entity) keep their meaning in texts.

    Args:
        pairs: whether rows are pairs of texts.
    """

    def __init__(self, tokenizer: Any, *, pairs: bool) -> None:
        kinds = ("bos", "eos", "sep", "cls", "pad", "mask")
        found = {str(token) for kind in kinds if (token := getattr(tokenizer, f"{kind}_token", None)) is not None}
        self.names = sorted(found, key=lambda name: (-len(name), name))
        self._ids = np.array(sorted(tokenizer.convert_tokens_to_ids(name) for name in self.names), dtype=np.int64)
        self._pattern = re.compile("|".join(map(re.escape, self.names)) or "(?!)", re.IGNORECASE)
        plain = tokenizer(*([["a"]] * (2 if pairs else 1)), return_attention_mask=False, verbose=False)
        self._usual = int(self._count(plain["input_ids"])[0])

    def _count(self, rows: list[list[int]]) -> np.ndarray:
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        hits = np.isin(np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum())), self._ids)
        before = np.concatenate([[0], np.cumsum(hits)])
        ends = np.cumsum(lengths)
        return before[ends] - before[ends - lengths]

    def spelled_out(self, rows: list[list[int]]) -> list[int]:
        """Return the rows of token ids with more structural tokens than the tokenizer adds."""
        return np.flatnonzero(self._count(rows) > self._usual).tolist()

    def escape(self, text: str) -> str:
        """Return a text with escaped structural tokens: a blank is inserted after the first character of each."""
        return self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def _notes_on_escaped(
    tokenizer: Any, escaped: np.ndarray, where: str, row_ids: Sequence[int] | np.ndarray | None
) -> list[str]:
    if not len(escaped):
        return []
    names = ", ".join(SpecialTokens(tokenizer, pairs=False).names)
    rows = "1 row contains" if len(escaped) == 1 else f"{len(escaped)} rows contain"
    first = "" if row_ids is None else f" (the first: row {int(row_ids[int(escaped[0])])})"
    return [f"{where}: {rows} special tokens of the model ({names}){first}; they are read as text"]


def _notes(table: TokenTable, lost: np.ndarray, max_length: int, where: str) -> list[str]:
    cut, tokens = int((lost > 0).sum()), int(lost.sum())
    if not cut:
        return []
    share = tokens / (tokens + int(table.lengths.sum()))
    return [
        f"{where}: {cut} of {len(table)} rows ({cut / len(table):.1%}) are longer than {max_length} tokens "
        f"and were truncated, dropping {share:.1%} of all tokens (task.max_length)"
    ]


def _digest(columns: Sequence[Iterable[str]]) -> str:
    """Return the SHA-256 of the rows' texts and their lengths."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(b"column\n")
        for text in column:
            content = text.encode("utf-8", errors="surrogatepass")
            digest.update(b"%d " % len(content) + content)
    return digest.hexdigest()
